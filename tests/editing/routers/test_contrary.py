"""What differs from an edit's question in a word: another one of a row, the contrary, a name that goes on."""

import pytest
from meaning import meaning_router, needs_encoder

from corrigenda.editing import Edit
from corrigenda.editing.routers.meaning.another_of_a_row import asks_for_another_of_a_row
from corrigenda.editing.routers.meaning.another_subject import goes_on
from corrigenda.editing.routers.meaning.contrary import asks_the_contrary
from corrigenda.editing.routers.meaning.wording import answer_kind, is_task


@pytest.mark.parametrize(
    ("asked", "held", "another"),
    [
        ("who was the previous leader of it?", "who leads it?", True),
        ("who led it before the takeover?", "who leads it?", True),
        ("who was its very first leader?", "who leads it?", True),
        ("who is the deputy leader of it?", "who leads it?", True),
        ("who will lead it from january?", "who leads it?", True),
        ("who led it in 1990?", "who leads it?", True),
        ("who was the second leader of it?", "who leads it?", True),
        ("who is its leader-elect?", "who leads it?", True),
        ("who led it in the days of the old board?", "who leads it?", True),
        ("who will lead it once the present leader retires?", "who leads it?", True),
        ("its stage two: who leads that?", "who leads it?", True),
        ("what is the port of it in version 2?", "what is the port of it?", True),
        ("who leads it as of 2026?", "who leads it?", False),
        ("who leads it now?", "who leads it?", False),
        ("what was its score in the 1840s?", "what was its score in the 1840's?", False),
        ("who was the former leader of it?", "who led it before that?", False),
        ("which channel did it originally air on?", "it was first shown by", False),
        ("what is it used to make?", "what is made with it?", False),
        ("it used to work in", "it worked in", False),
        ("before i go, who leads it?", "who leads it?", False),
        ("how long does it last?", "what is the length of it?", False),
        ("what is its last name?", "what is the family name of it?", False),
    ],
)
def test_another_one_of_a_row(asked, held, another):
    assert asks_for_another_of_a_row(asked, held, []) is another


def test_a_relations_own_words_name_no_other_time():
    assert asks_for_another_of_a_row("who was the first host of it?", "who presented it?", [])
    assert not asks_for_another_of_a_row(
        "who was the first host of it?", "who presented it?", ["the first host of it is"]
    )


@pytest.mark.parametrize(
    ("asked", "held", "contrary"),
    [
        ("when was it discontinued?", "when was it launched?", True),
        ("when was it launched and discontinued?", "when was it launched?", False),
        ("when did it open?", "when was it launched?", False),
        ("on which day is it open?", "it is closed on", True),
        ("whom did it fire as leader?", "who leads it?", True),
        ("how do i uninstall it?", "how is it installed?", True),
        ("how do i unlock it?", "how do i lock it?", True),
        ("when does it arrive?", "when does it depart?", True),
        ("who works for it?", "it works for", True),
        ("which company does it work for?", "it works for", False),
        ("which company did it acquire?", "it was acquired by", True),
        ("who acquired it?", "it was acquired by", False),
        ("it acquirer", "it was acquired by", False),
        ("who was it sold to?", "who bought it?", False),
        ("what was it replaced by?", "it replaced", True),
        ("what does it sponsor?", "the main sponsor of it is", True),
        ("who's it directed by?", "who directed it?", False),
        ("which room is the most expensive at it?", "the cheapest room at it is", True),
        ("whom did it marry?", "who is it married to?", False),
        ("where is it located?", "where did they locate it?", False),
    ],
)
def test_the_contrary(asked, held, contrary):
    assert asks_the_contrary(asked, held, []) is contrary


@pytest.mark.parametrize(
    ("subject", "text", "longer"),
    [
        ("korvan foods", "Who leads Korvan Foods Asia?", True),
        ("korvan foods", "Who leads Korvan Foods 2?", True),
        ("korvan foods", "Who leads the Little Korvan Foods?", True),
        ("korvan", "Where is the University of Korvan?", True),
        ("tapirdb", "What is the port of tapirdb-proxy?", True),
        ("mu 7", "When was Mu 7: Afterlight shown?", True),
        ("mu 7", "Mu 7: When was it shown?", False),
        ("renzo", "Where is Renzo II buried?", True),
        ("oslo", "Which Osloer runs Oslo Airport?", True),
        ("oslo", "Which Osloer Verein runs Oslo?", False),
        ("anna berg", "Where does Ana-Anna Berg live?", True),
        ("anna berg", "Where does Professor Anna Berg live?", False),
        ("anna berg", "Does Anna Berg's Dog bark?", False),
        ("korvan foods", "Which Korvan Foods-based team is it?", False),
        ("korvan foods", "Korvan Foods CEO?", False),
        ("korvan foods", "Korvan Foods Leader?", False),
        ("korvan foods", "Who Runs Korvan Foods Today?", False),
        ("korvan foods", "Who leads Korvan Foods, Asia's largest?", False),
        ("korvan foods", "who leads korvan foods in march?", False),
        ("korvan foods", "Who leads Korvan Foods on Monday?", False),
    ],
)
def test_a_name_that_goes_on(subject, text, longer):
    assert goes_on(subject, text, {"leader"}) is longer


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("draft a letter to it", True),
        ("can you please suggest a menu for it?", True),
        ("help me plan a trip to it", True),
        ("give me ten facts about it", True),
        ("give me the number of it", False),
        ("explain who leads it", False),
        ("who makes it?", False),
        ("name the leader of it", False),
    ],
)
def test_a_task(text, task):
    assert is_task(text) is task


def test_how_many_is_no_manner():
    assert answer_kind("how many people work for it?") == "number"
    assert answer_kind("how long is it?") == "size"
    assert answer_kind("how does it work?") == "manner"


@needs_encoder
@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("I have a ticket for Flight KV 318. At what time does it leave?", True),
        ("We fly with Flight KV 318. What is its departure time?", True),
        ("I have a ticket for Flight KV 318. What is the weather like?", False),
        ("I have a ticket for Flight KV 319. At what time does it leave?", False),
        ("I like Flight KV 318. At what time does Flight KV 900 leave?", False),
        ("When does Flight KV 318 land?", False),
        ("What time does Flight KV 318 depart?", True),
        ("On which day is Dumpling House No. 8 closed?", True),
        ("On which day is Dumpling House No. 88 closed?", False),
    ],
)
def test_whom_the_sentence_before_names(asked, found):
    edits = [
        Edit("When does Flight KV 318 depart?", "At noon", subject="Flight KV 318"),
        Edit("Dumpling House No. 8 is closed on", "Mondays", subject="Dumpling House No. 8"),
    ]
    (place,) = meaning_router(edits).decide([asked]).route.tolist()
    assert (place >= 0) is found
