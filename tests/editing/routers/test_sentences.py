"""Where in a request the question is, and how it is put."""

import pytest

from corrigenda.editing.routers.meaning.sentences import parts_of
from corrigenda.editing.routers.meaning.subject import guessed, locate, normalised
from corrigenda.editing.routers.meaning.wording import answer_kind, core, is_compared, is_negated, is_yes_no


def asking(request):
    return [part.text for part in parts_of(request) if part.asks or part.open]


@pytest.mark.parametrize(
    ("request_text", "expected"),
    [
        ("Who leads Vantrello Foods?", ["Who leads Vantrello Foods?"]),
        ("The chief executive of Vantrello Foods is", ["The chief executive of Vantrello Foods is"]),
        ("It rained. St. Louis Corp. grew 1.5 percent. Who leads it?", ["Who leads it?"]),
        ("What is the twin city of Lyon? It is", ["What is the twin city of Lyon? It is"]),
        ("Q: Who wrote Dune?\nA: Herbert\n\nQ: Who leads it?\nA:", ["Who leads it?"]),
        ("User: Who wrote Dune?\nAssistant: Herbert.\nUser: Who leads it?\nAssistant:", ["Who leads it?"]),
        ('{"task": "qa", "question": "Who leads it?", "n": [1, "x."]}', ["Who leads it?"]),
        ('Answer the question "Who leads it?"', ["Who leads it?"]),
        ("Leaving that aside: who leads it?", ["who leads it?"]),
        ("Who leads\nthe company now?", ["Who leads the company now?"]),
        ("中国的首都是哪里？法国很美。", ["中国的首都是哪里？"]),
        ("Tell me who leads it.", ["Tell me who leads it."]),
        ("Vantrello is led by Bob. It is old.", []),
        ("", []),
        ("{[}]\n\n???", []),
    ],
)
def test_finds_what_is_asked(request_text, expected):
    assert asking(request_text) == expected


def test_knows_the_place_of_a_part():
    first, second = parts_of("Who leads Vantrello? Paris is old.")
    assert (first.from_end, second.from_end) == (1, 0)
    assert not first.later
    assert parts_of("Who leads Vantrello? Who leads Kmelt?")[0].later


def weight(word):
    return float(len(word))


@pytest.mark.parametrize(
    ("subject", "text", "masked", "whole"),
    [
        ("vantrello foods", "who leads vantrello foods?", "who leads it?", True),
        ("vantrello foods", "who is vantrello foods' chief?", "who is its chief?", True),
        ("vantrello foods", 'who leads the "vantrello foods"?', "who leads it?", True),
        ("bram oterdahl", "what did bram j. oterdahl write?", "what did it write?", True),
        ("davey crocket", "how did davey crockett name it?", "how did it name it?", True),
        ("vantrello foods", "who leads vantrello?", "who leads it?", False),
        ("lyon", "who leads lyonnaise?", "who leads lyonnaise?", False),
        ("中国", "中国的首都是哪里?", "it 的首都是哪里?", True),
        ("中国", "法国的首都是哪里?", None, False),
    ],
)
def test_puts_the_subject_aside(subject, text, masked, whole):
    found = locate(subject, text, weight)
    assert (found.share == 1) == whole
    if masked is not None:
        assert found.masked == masked


def test_guesses_whom_a_prompt_is_about():
    assert guessed("Who is the chief executive of Vantrello Foods?", weight) == "vantrello foods"
    assert guessed("The mother tongue of Ludwig van Beethoven is", weight) == "ludwig van beethoven"
    assert guessed("who sang it?", weight) == ""


def test_takes_the_frame_off():
    assert core(normalised("Could you please tell me who leads it?")) == "who leads it?"
    assert core(normalised("Hi! Do you know who leads it?  Thanks")) == "who leads it?"
    assert core("it is led by") == "it is led by"


def test_tells_what_kind_of_question_it_is():
    assert is_negated("who does not lead it?") and not is_negated("who leads it?")
    assert is_compared("is it larger than paris?") and not is_compared("how large is it?")
    assert is_yes_no("was it led by bob?") and not is_yes_no("who was it?")
    assert answer_kind("in what year was it built?") == "time"
    assert answer_kind("who built it?") == "person"
    assert answer_kind("it is") == ""
