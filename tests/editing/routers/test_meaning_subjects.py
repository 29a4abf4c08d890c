"""Whom a request is about: one of a series is not another, and a name that goes on is another name."""

import numpy as np
import pytest
from meaning import meaning_router, needs_encoder
from tiny import tiny_tokenizer

from corrigenda.editing import Edit
from corrigenda.editing.backbone.background import background_prompts
from corrigenda.editing.routers.meaning.another_subject import is_another_name, is_another_of_its_kind
from corrigenda.editing.routers.meaning.decoys import Decoys, texts_of
from corrigenda.editing.routers.meaning.encoder import PACKAGED_ENCODER, load_encoder
from corrigenda.editing.routers.meaning.known import Known
from corrigenda.editing.routers.meaning.router import MeaningRouter
from corrigenda.editing.routers.meaning.sentences import parts_of
from corrigenda.editing.routers.meaning.subject import (
    locate,
    names_in,
    normalised,
)
from corrigenda.editing.routers.meaning.wording import answer_kind, core

EDITS = [
    Edit("Who makes the Ostara 126?", "Fenwick", subject="Ostara 126", id="car"),
    Edit("Which office did Aldous X hold?", "bishop", subject="Aldous X", id="office"),
    Edit("When was the Korvan Wall built?", "1931", subject="Korvan Wall", id="wall"),
    Edit("When was Korvan founded?", "1204", subject="Korvan", id="town"),
    Edit("In which country is the Tessel Glacier?", "Norway", subject="Tessel Glacier", id="ice"),
    Edit("Where does the amber ferry start?", "Bergen", subject="amber ferry", id="ferry"),
]


@pytest.fixture(scope="module")
def router():
    return meaning_router(EDITS)


@needs_encoder
@pytest.mark.parametrize(
    ("asked", "edit"),
    [
        ("Which company is the Ostara 126 made by?", "car"),
        ("Which company is the Ostara 125 made by?", None),
        ("Which office did Aldous IX hold?", None),
        ("When was the Korvan Wall completed?", "wall"),
        ("When was the town of Korvan founded?", "town"),
        ("In which country is the Minnes Glacier?", None),
        ("The amber ferry: from where does it depart?", "ferry"),
        ("It was a cold day. Tessel Glacier is located in the country of", "ice"),
    ],
)
def test_whom_it_is_about(router, asked, edit):
    (place,) = router.decide([asked]).route.tolist()
    assert (EDITS[place].id if place >= 0 else None) == edit


@pytest.mark.parametrize(
    ("subject", "text", "another"),
    [
        ("fiat 126", "fiat 125 is made by", True),
        ("fiat 126", "the fiat 126 is made by", False),
        ("clement x", "clement ix has the position of", True),
        ("ada weber, 3rd countess", "who taught ada weber?", False),
        ("clement i", "clement x has the position of", True),
        ("clement i", "which office did clement hold, i ask?", False),
        ("1999 cup", "who won the 1998 cup?", True),
        ("221 oster street", "what is at 223 oster street?", True),
        ("221 oster street", "what is at oster street 221?", False),
        ("ada weber, 3rd countess", "the mother of ada weber, 3. countess is", False),
        ("ada weber, 3rd countess", "the mother of ada weber, 2nd countess is", True),
        ("ostarase mu 1", "which species has ostarase mu1?", False),
        ("ostarase mu1", "which species has ostarase mu 1?", False),
        ("ostarase mu 1", "which species has ostarase mu2?", True),
    ],
)
def test_a_number_tells_one_of_a_series_from_another(subject, text, another):
    assert is_another_of_its_kind(subject, text) is another


@pytest.mark.parametrize(
    ("subject", "text", "another"),
    [
        ("anna berg", "Where does Anne Berg work?", True),
        ("anna berg", "Where does Anna Bergman work?", True),
        ("julian frey", "Which team does Julia Frey coach?", True),
        ("14 elm street", "What is at 14 Oak Street?", True),
        ("vitamin b12", "What does vitamin D help with?", True),
        ("marie olsen institute", "Where is the Marie Curie Institute?", True),
        ("anna berg", "Where does A. Berg work?", False),
        ("raymond berg", "Where does Ray Berg work?", False),
        ("anna berg", "Where does Dr. Berg work?", False),
        ("anna berg", "Where does Berg work?", False),
        ("anna berg", "where does anne berg work?", False),
        ("anna berg", "WHERE DOES ANNE BERG WORK?", False),
        ("brightwater analytics", "Who leads Brightwater Analitycs?", False),
        ("anna berg", "Anna, Borg and Berg?", False),
    ],
)
def test_another_word_in_a_names_place_makes_another_name(subject, text, another):
    assert is_another_name(subject, text, lambda word: 1.0 if word in ("anne", "julia") else 3.0) is another


@needs_encoder
@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("Who is the mayor of Bolton?", True),
        ("Who is the mayor of Boltn?", True),
        ("Who is the mayor of Boston?", False),
        ("Where is WKRB?", True),
        ("Where is WKRP?", False),
        ("Who leads Brightwater Analitycs?", True),
    ],
)
def test_a_word_that_there_is_is_no_other_one_misspelt(asked, found):
    edits = [
        Edit("Who is the mayor of Bolton?", "Ada", subject="Bolton"),
        Edit("Where is WKRB?", "Oslo", subject="WKRB"),
        Edit("Who leads Brightwater Analytics?", "Ines", subject="Brightwater Analytics"),
    ]
    (place,) = meaning_router(edits).decide([asked]).route.tolist()
    assert (place >= 0) is found


def test_words_that_are_written_as_names():
    assert names_in("Which state is Minnesota Glacier in, I ask?") == {"minnesota", "glacier"}
    assert names_in("who leads it?") == set()


def test_a_floor_leaves_out_only_what_lies_below_it():
    def weight(word):
        return 1.0

    for text in ("who leads the korvan wals?", "the kelvin wall is", "nothing of it"):
        for floor in (0.4, 0.6):
            full, bound = locate("korvan wall", text, weight), locate("korvan wall", text, weight, floor)
            assert bound == full if full.share >= floor else bound.share < floor


def test_a_topic_before_a_colon_stays_with_its_question():
    for text in ("The amber ferry: where does it start?", "Bus 47: where do I find it?", "Kestrel: who runs it?"):
        assert [part.text for part in parts_of(text)] == [text]
    assert [part.text for part in parts_of("My question: where does Kestrel start?")][-1] == "where does Kestrel start?"


def test_a_heading_that_ends_with_a_number_is_a_sentence():
    assert [part.text for part in parts_of("Awards 1. The trade of Ada is")] == ["Awards 1.", "The trade of Ada is"]
    assert [part.text for part in parts_of("Who won the 3. Division?")] == ["Who won the 3. Division?"]


@pytest.mark.parametrize(("text", "kind"), [("it was set up by", "person"), ("it has existed since", "time")])
def test_a_statement_says_what_kind_of_answer_it_wants(text, kind):
    assert answer_kind(text) == kind


@needs_encoder
def test_relations_that_one_question_may_ask_for_are_no_decoys_of_each_other():
    decoys = Decoys(load_encoder(PACKAGED_ENCODER))
    place, country = decoys.names.index("location"), decoys.names.index("country")
    assert decoys.alike[place, country] and decoys.alike[country, place] and decoys.alike.diagonal().all()
    assert not decoys.alike[country, decoys.names.index("continent")]


@needs_encoder
def test_no_wording_is_of_two_relations_that_are_decoys_of_each_other():
    decoys = Decoys(load_encoder(PACKAGED_ENCODER))
    of = {}
    for name, wordings in texts_of()[0].items():
        for text in wordings:
            of.setdefault(text, []).append(decoys.names.index(name))
    shared = {text: places for text, places in of.items() if len(set(places)) > 1}
    assert shared and all(decoys.alike[places[0], place] for places in shared.values() for place in places)


@pytest.mark.parametrize(
    ("prompt", "long"),
    [
        ("The gender of Arlin V. Stevens is", False),
        ("Who wrote about Dr. Aldous K. R. Tessel?", False),
        ("A holiday in Ostania celebrates the dam. Which year was that?", True),
        ("Is it old? When was Korvan founded?", True),
    ],
)
def test_an_initial_ends_no_sentence(prompt, long):
    known = Known([], "", core(normalised(prompt)), core(normalised(prompt)), 0, np.zeros((2, 4), dtype=np.int8))
    assert known.is_long is long


@needs_encoder
def test_of_a_name_with_initials_not_every_question_gets_the_edit():
    edits = [
        Edit("The gender of Arlin V. Stevens is", "female", subject="Arlin V. Stevens", id="gender"),
        Edit("What is the occupation of Nana H. Overgaard?", "mason", subject="Nana H. Overgaard", id="work"),
    ]
    router = MeaningRouter(tiny_tokenizer(2000, tuple(background_prompts())), background_prompts())
    router.add_fingerprints(router.fingerprints_of([edit.prompt for edit in edits], edits))
    asked = [
        "The name of the country of citizenship of Arlin V. Stevens is",
        "Who is the father of Nana H. Overgaard?",
        "What does Nana H. Overgaard do for a living?",
    ]
    assert router.decide(asked).route.tolist() == [-1, -1, 1]
