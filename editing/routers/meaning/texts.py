"""What an edit is compared by: its question, its subject put aside, and the questions that it must not answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ...edits.edit import Edit
from .pairs import SHARE
from .sentences import parts_of
from .subject import guessed, locate, normalised, words
from .wording import core

_COVERED = 0.6
"""What share of a prompt's words, by weight, its question must hold to stand for it: "Who is he?" cannot."""

_LONGEST_QUESTION = 80
"""Words of a question in several sentences; what is longer is a passage."""


class Texts(NamedTuple):
    """An edit's question, masked and whole, and protected ones `about` its subject, and `others`; as in `Known`."""

    subject: str
    masked: str
    whole: str
    about: list[str]
    others: list[str]

    @property
    def encoded(self) -> list[str]:
        return [self.masked, self.whole, *self.about, *self.others]


def texts_of_edit(edit: Edit, weight: Callable[[str], float]) -> Texts:
    """The texts of an edit; weight: what a word says about whom one means."""

    def said(text: str) -> float:
        return sum(map(weight, words(normalised(text))))

    parts = parts_of(edit.prompt)
    asking = [part for part in parts if part.asks or part.open or len(parts) == 1]
    question = asking[-1].text if asking else ""
    if not question:
        return Texts("", "", normalised(edit.prompt), [], [])
    if said(question) < _COVERED * said(edit.prompt):
        # "A holiday in Greece celebrates ... Which year was that?" asks with all its sentences; a passage does not.
        if not asking[-1].asks or len(edit.prompt.split()) > _LONGEST_QUESTION:
            return Texts("", "", normalised(edit.prompt), [], [])
        question = " ".join(edit.prompt.split())
    text = normalised(question)
    subject = normalised(edit.subject) if edit.subject else guessed(question, weight)
    found = locate(subject, text, weight)
    if found.share < SHARE:
        subject = guessed(question, weight)
        found = locate(subject, text, weight)
    # What is asked of the same subject is compared without it, another protected question as it stands. A locality
    # about another subject needs nothing: no request about that one comes near this edit.
    about, others = [], []
    for text in dict.fromkeys([*edit.protected, *(locality.prompt for locality in edit.localities)]):
        place = locate(subject, normalised(text), weight)
        if place.share >= SHARE:
            about.append(core(place.masked))
        elif text in edit.protected:
            others.append(core(normalised(text)))
    return Texts(subject, core(found.masked), core(normalised(question)), about, others)
