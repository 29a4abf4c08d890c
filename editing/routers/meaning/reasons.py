"""Why an edit does not answer a request that is about its subject, as a number that decisions carry, and in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .decoys import Profile
from .rule import EVIDENCE, EditSide

NOTHING, PROTECTED, WHETHER, DENIED, COMPARED, TASK, MENTION, OTHER = range(8)
RELATION = 16
"""From here on: the relation of this number less `RELATION` is what is asked instead."""

_WORDS = {
    PROTECTED: "asks one of its protected questions",
    WHETHER: "asks for yes or no",
    DENIED: "asks for what is not so",
    COMPARED: "compares",
    TASK: "sets a task about its subject",
    MENTION: "only mentions its subject",
    OTHER: "asks something else about its subject",
}


def against_of(row: np.ndarray, asked: Profile, held: EditSide) -> int:
    """What speaks most against a pair with this evidence."""
    said = dict(zip(EVIDENCE, row.tolist()))
    if said["negated"]:
        return DENIED
    if said["compared"]:
        return COMPARED
    near = np.where(held.own, -1.0, asked.relations)
    best = max((float(near.max()), RELATION), (asked.tasks, TASK), (asked.mentions, MENTION))
    if best[0] <= said["cosine"]:
        return OTHER
    return RELATION + int(near.argmax()) if best[1] == RELATION else best[1]


def in_words(against: int, relations: Sequence[str]) -> str | None:
    """What a number of these says: of a request, after "it"."""
    if RELATION <= against < RELATION + len(relations):
        return f'asks for something like "{relations[against - RELATION]}"'
    return _WORDS.get(against)
