"""Templates around a prompt, and the joint between prompt and target."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corrigenda.editing.edits.template import Template, join, join_target
from corrigenda.editing.errors import CorrigendaError

PROMPT = "{prompt}"
AROUND = st.text().filter(lambda text: PROMPT not in text)


def test_no_template_is_the_identity() -> None:
    assert Template.parse(None) == Template() == Template.parse(PROMPT)
    assert Template.parse(None).wrap("nq question: who built it ") == "nq question: who built it "


def test_a_written_line_break_becomes_one() -> None:
    template = Template.parse(r"Question: {prompt}\nAnswer:")
    assert template == Template("Question: {prompt}\nAnswer:")
    assert template.wrap("Who built it?") == "Question: Who built it?\nAnswer:"


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("nq question: who built it", "who built it?"),
        ("nq question: who built it ", "who built it?"),
        ("nq question: who built it?", "who built it?"),
        ("nq question: who built it? ", "who built it?"),
        ("The builder was", "The builder was"),
        ("see the nq question: who built it", "see the nq question: who built it"),
        ("a {prompt} and {0}", "a {prompt} and {0}"),
    ],
)
def test_benchmark_questions_become_plain_ones(prompt: str, question: str) -> None:
    assert Template("Q: {prompt} A:").wrap(prompt) == f"Q: {question} A:"


def test_other_braces_are_literal() -> None:
    assert Template("{} {{x}} {prompt} {name!r}").wrap("p") == "{} {{x}} p {name!r}"


@pytest.mark.parametrize(("text", "count"), [("", 0), ("no slot", 0), ("{ prompt }", 0), ("{prompt} {prompt}", 2)])
def test_the_slot_must_occur_once(text: str, count: int) -> None:
    with pytest.raises(CorrigendaError) as caught:
        Template.parse(text)
    assert str(caught.value) == f'A template must contain "{{prompt}}" once, but {text!r} has it {count} times.'


@given(AROUND, AROUND, st.text().filter(lambda text: not text.startswith("nq question: ")))
def test_the_prompt_stands_whole_between_the_parts(before: str, after: str, prompt: str) -> None:
    template = Template(before + PROMPT + after)
    assert Template(template.text) == template
    assert template.wrap(prompt) == before.replace("\\n", "\n") + prompt + after.replace("\\n", "\n")


@pytest.mark.parametrize(
    ("prompt", "target", "joined"),
    [
        ("The capital is", "Bonn", "The capital is Bonn"),
        ("The capital is", "  Bonn ", "The capital is Bonn "),
        ("The capital is ", " Bonn", "The capital is Bonn"),
        ("Answer:\n", "Bonn", "Answer:\nBonn"),
    ],
)
def test_one_space_between_prompt_and_target(prompt: str, target: str, joined: str) -> None:
    assert join(prompt, target) == joined


@given(st.text(), st.text())
def test_joining_keeps_both_texts(prompt: str, target: str) -> None:
    joined = join(prompt, target)
    assert joined.startswith(prompt)
    assert joined[len(prompt) :] in (target.lstrip(), " " + target.lstrip())
    assert join(prompt + " ", target) == prompt + " " + target.lstrip()


@pytest.mark.parametrize(
    ("prompt", "target", "whole"),
    [
        ("a", "b", "a b"),
        ("a", " b", "a b"),
        ("a ", " b", "a b"),
        ("a\n", "b", "a\nb"),
        ("a", "\n    b\n", "a\n    b\n"),
        ("a:", "    b", "a:    b"),
        ("a\n", "\tb", "a\n\tb"),
    ],
)
def test_a_target_keeps_its_line_breaks_and_indentation(prompt: str, target: str, whole: str) -> None:
    assert join_target(prompt, target) == whole
