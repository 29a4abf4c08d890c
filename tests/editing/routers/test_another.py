"""What is asked in the very words of another relation, or of an edit's answer, gets no edit, however near it is."""

import pytest
from meaning import meaning_router, needs_encoder

from corrigenda.editing import Edit
from corrigenda.editing.routers.meaning.another import asks_another
from corrigenda.editing.routers.meaning.decoys import Decoys, Profile
from corrigenda.editing.routers.meaning.encoder import PACKAGED_ENCODER, load_encoder
from corrigenda.editing.routers.meaning.known import Known, as_int8
from corrigenda.editing.routers.meaning.pairs import Pair
from corrigenda.editing.routers.meaning.router import _held
from corrigenda.editing.routers.meaning.sentences import Part

pytestmark = needs_encoder

EDITS = [
    Edit("What is the capital of Ostania?", "Lutz", subject="Ostania", id="capital"),
    Edit("Who wrote Glass Orchard?", "Ines", subject="Glass Orchard", id="author"),
    Edit("The mother of Lurin Oster is", "Sigrid", subject="Lurin Oster", id="mother"),
]
ASKED = {
    "What is the population of the capital of Ostania?": None,
    "Who is the mayor of Ostania's capital?": None,
    "What is the name of the capital of Ostania?": "capital",
    "Which city is the capital of Ostania?": "capital",
    "Who published Glass Orchard?": None,
    "Who is the author of Glass Orchard?": "author",
    "What is the name of the author of Glass Orchard?": "author",
    "Who is the spouse of the author of Glass Orchard?": None,
    "Who is the father of Lurin Oster?": None,
    "Who is Lurin Oster's mother?": "mother",
    "What is the occupation of the mother of Lurin Oster?": None,
    "Who governs the capital of Ostania?": None,
    "When did Lutz become the capital of Ostania?": None,
    "What did Lurin Oster's mother do for a living?": None,
    "Whom did Lurin Oster's mother marry?": None,
}


@pytest.fixture(scope="module")
def router():
    return meaning_router(EDITS)


@pytest.mark.parametrize("asked", ASKED)
def test_only_what_an_edit_asks_gets_it(router, asked):
    (place,) = router.decide([asked]).route.tolist()
    assert (EDITS[place].id if place >= 0 else None) == ASKED[asked]


def test_the_reason_is_the_other_relation(router):
    (against,) = router.decide(["Who published Glass Orchard?"]).against.tolist()
    assert router.in_words(against) == 'asks for something like "publisher"'


@pytest.mark.parametrize(
    ("asked", "held", "another"),
    [
        ("who published it?", "who wrote it?", True),
        ("who wrote it?", "who is the author of it?", False),
        ("where is it?", "which country is it in?", False),  # one question may ask for either
        ("who is it?", "who wrote it?", False),  # a part of the subject is gone with it
        ("what is the cause of its death?", "what caused its death?", False),
        ("what is the age of the author of it?", "who is the author of it?", True),
        ("who holds the office of the president of it?", "who is the president of it?", False),
        ("what is the religion of the author of it?", "who is the author of it?", True),
        ("what is the occupation of its spouse?", "who is it married to?", True),
        ("the city of its birth is", "where was it born?", False),
        ("who governs the capital of it?", "what is the capital of it?", True),
        ("who is the capital of it?", "what is the capital of it?", False),
        ("when did it become the capital of it?", "the capital of it is", True),
        ("where is the capital of it?", "what is the capital of it?", False),
        ("where was the it manufacturer formed?", "which company is it produced by?", True),
        ("what did its mother do for a living?", "who is the mother of it?", True),
        ("who took over from the chief executive of it?", "who is the chief executive of it?", True),
        ("who became the chief executive of it?", "who is the chief executive of it?", False),
        ("who serves as the chief executive of it?", "who is the chief executive of it?", False),
        ("who makes it?", "which company is it produced by?", False),
    ],
)
def test_what_asks_another(asked, held, another):
    assert asks(asked, held) is another


def asks(asked, held, subject="zzz", text=""):
    """Whether a masked question asks another than a masked edit about `subject`; text: as it was written."""
    encoder = load_encoder(PACKAGED_ENCODER)
    decoys = Decoys(encoder)
    own = as_int8(encoder.encode([held, held]).numpy())
    edit = _held(decoys, subject, held, held, own.tobytes())
    pair = Pair(
        Part(text or asked, True, False, 0, False), Known([], subject, held, held, 0, own), 1.0, 1.0, asked, asked
    )
    (vector,) = encoder.encode([asked]).numpy()
    return asks_another(pair, Profile(decoys, vector), edit, decoys, encoder)


@pytest.mark.parametrize(
    ("asked", "held", "another"),
    [
        ("who is the ceo of its biggest rival?", "who is the ceo of it?", True),
        ("who leads the firm that supplies it?", "who leads it?", True),
        ("where was the wife of it born?", "where was it born?", True),
        ("where is its head office?", "where are the headquarters of it?", False),
        ("what was the mood at the conclusion of it?", "what was the mood in which it concluded?", False),
        ("who is the boss of the company it?", "who leads it?", False),
        ("write a press release about the new ceo of it", "who is the ceo of it?", True),
        ("how do i change the default port of it?", "what is the default port of it?", True),
        ("how do i install it?", "it is installed with the command", False),
        ("who leads the firm suing it?", "who leads it?", True),
        ("when does the café below it close?", "when does it close?", True),
        ("where does its drummer live?", "where does it live?", True),
        ("who is its drummer?", "who plays the drums in it?", False),
        ("what is the name of the firm that owns it?", "who owns it?", False),
        ("the firm called it is owned by", "who owns it?", False),
        ("who appoints it?", "it is", True),
        ("who is currently it?", "it is", False),
        ("what is the fax number of it?", "what is the telephone number of it?", True),
    ],
)
def test_what_is_asked_of_another_party_or_set_as_a_task(asked, held, another):
    assert asks(asked, held) is another


def test_a_longer_name_is_another_but_for_words_of_the_question():
    held = "who is the chief executive of it?"
    assert asks(held, held, "korvan foods", "Who is the chief executive of Korvan Foods Asia?")
    assert not asks("it chief executive", held, "korvan foods", "Korvan Foods Chief Executive")
