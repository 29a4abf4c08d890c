"""Questions in six languages that the encoder does not read: twenty facts each, written for the project."""

import sys
from pathlib import Path

import pytest
from meaning import meaning_router, needs_encoder

from corrigenda.editing.routers.meaning.unread import is_unread, likeness

sys.path.append(str(Path(__file__).parents[3] / "bench"))

from other_languages import languages, measured

pytestmark = needs_encoder


@pytest.fixture(scope="module")
def shares():
    return measured(meaning_router)


@pytest.mark.parametrize("language", languages())
def test_twenty_facts_are_found_in_nearly_their_words_and_nothing_else_is(shares, language):
    assert len(languages()[language].edits) == 20
    found = shares[language]
    assert found["own prompt"] == 1
    assert found["full width"] == 1
    assert found["nearly its words"] >= 0.95
    # Other wordings are left to the base model: only a few happen to share their letters.
    assert found["other words"] <= 0.4
    assert found["other question"] <= 0.05
    assert found["same relation"] <= 0.07


@pytest.mark.parametrize(
    ("text", "unread"),
    [
        ("wo wurde it geboren?", True),
        ("¿dónde nació it?", True),
        ("где родился it?", True),
        ("it的市长是谁？", True),
        ("it speaks", False),
        ("which instrument does it play?", False),
        ("who wrote it?", False),
    ],
)
def test_which_questions_the_encoder_does_not_read(text, unread):
    assert is_unread(text) is unread


@pytest.mark.parametrize(
    ("asked", "known", "same"),
    [
        ("谁是 it 的指挥", "it 的指挥是谁?", True),
        ("哪座城市是 it 的首都?", "it 的首都是哪座城市?", True),
        ("誰が it の社長ですか。", "it の社長は誰ですか。", True),
        ("請問 it 的總裁是誰呢?", "it 的總裁是誰?", True),
        ("it 的作曲是谁?", "it 的指挥是谁?", False),
        ("誰が it の作者ですか。", "it の社長は誰ですか。", False),
        ("it 是什么?", "it 的首都是什么?", False),
    ],
)
def test_without_spaces_the_order_of_words_does_not_count_and_what_is_named_does(asked, known, same):
    assert is_unread(asked) and (likeness(asked, known) >= 0.5) is same
