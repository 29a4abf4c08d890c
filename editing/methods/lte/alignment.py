"""LTE's alignment set: questions with and without a notice, which bears on them or does not (arXiv 2402.11905, 3.1)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ...edits.edit import Edit
from ..prompted import fact_of

_REWORDED = 0.7
"""Share of questions in scope that are put as a rephrasing."""


class Example(NamedTuple):
    """A question with the facts of the notice before it, the edit's own first, none without a notice; its answer, or
    None: what the model says to it as it is."""

    facts: tuple[str, ...]
    question: str
    answer: str | None


def alignment_set(edits: Sequence[Edit], nearest: Callable[[int], Sequence[int]], seed: int) -> list[Example]:
    """Four examples of each edit: a question in its scope and one out of it, each with the notice and without.

    In scope: the edit's prompt, or for 70 % a rephrasing; with the notice the answer is the target, without it what
    held before. Out of scope: a question about the same subject where the record has one (its `protected` ones and
    localities that name it), else another locality, else another edit's prompt; the answer is the same both ways.
    The notice is the edit alone for half of the edits, with one more fact for a quarter, with two for a quarter: of
    other subjects, the most like it first.

    nearest: the places of the edits most like the one at a place, best first
    """
    draw = random.Random(seed)
    found = []
    for place, edit in enumerate(edits):
        facts = (fact_of(edit), *_distractors(edits, place, nearest, draw.choices((0, 1, 2), (0.5, 0.25, 0.25))[0]))
        asked = draw.choice(edit.rephrases) if edit.rephrases and draw.random() < _REWORDED else edit.prompt
        before = edit.ground_truth[0] if edit.ground_truth else None
        found += [Example(facts, asked, edit.target), Example((), asked, before)]
        elsewhere, answer = _out_of_scope(edits, place, draw)
        found += [Example(facts, elsewhere, answer), Example((), elsewhere, answer)]
    return found


def _distractors(edits: Sequence[Edit], place: int, nearest: Callable[[int], Sequence[int]], count: int) -> list[str]:
    own = edits[place]
    others = (
        edits[other]
        for other in (nearest(place) if count else ())
        if other != place and edits[other].prompt != own.prompt and (edits[other].subject or other) != own.subject
    )
    return [fact_of(other) for other, _ in zip(others, range(count))]


def _out_of_scope(edits: Sequence[Edit], place: int, draw: random.Random) -> tuple[str, str | None]:
    edit = edits[place]
    subject = (edit.subject or "").casefold()
    asked: list[tuple[str, str | None]] = [(text, None) for text in edit.protected]
    asked += [(one.prompt, one.answer) for one in edit.localities if subject and subject in one.prompt.casefold()]
    asked = asked or [(one.prompt, one.answer) for one in edit.localities]
    asked = asked or [(o.prompt, (*o.ground_truth, None)[0]) for o in edits if o.prompt != edit.prompt]
    return draw.choice(asked) if asked else (edit.prompt + " And why is the sky blue?", None)
