"""Which stored edits a new one is about the same fact as: the last write of a fact wins."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..edits.edit import Edit
from .history import History, StoredEdit, normalised_prompt

if TYPE_CHECKING:
    from ..methods.method import Method

SAME_FACT = 0.999
"""The routing score from which an edit with another target is about the same fact. Two questions about one subject
share its rare tokens and reach 0.9 and more, so only (almost) the same words are taken for the same question."""


class SameFact(NamedTuple):
    """What a new edit is about again.

    stored   every stored edit of the same fact, in whatever status
    within   places in its own batch, before it, of edits of the same fact
    rival    the stored edit whose place it would take: in the memory now, and of this fact
    """

    stored: list[int]
    within: list[int]
    rival: int | None


def same_facts(
    history: History, method: Method, order: Sequence[int], batch: Sequence[Edit], threshold: float = SAME_FACT
) -> list[SameFact]:
    """For each edit of a batch, the edits that are about the same fact.

    order: the stored edits that the router knows now, by its places. By the router's score only the nearest one is
    looked at, and nothing within the batch; where routes name no edits, it says nothing of facts.
    """
    nearest = _nearest(method, batch) if order and method.names_edits else []
    known = set(order)
    earlier: dict[str, list[int]] = {}
    found = []
    for place, edit in enumerate(batch):
        stored = set(history.same_prompt(edit.prompt))
        by_id = history.find(edit.id)
        if by_id is not None:
            stored.add(by_id.seq)
        if nearest and nearest[place][1] >= threshold:
            like = history.edits[order[nearest[place][0]]]
            if rewrites(edit, like):
                stored.add(like.seq)
        for seq in list(stored):
            stored.update(history.edits[seq].supersedes)
        rivals = sorted(stored & known)
        within = earlier.setdefault(normalised_prompt(edit.prompt), [])
        found.append(SameFact(sorted(stored), list(within), rivals[-1] if rivals else None))
        within.append(place)
    return found


def superseding(newer: str, older: str) -> str:
    """What a user is told of an edit that takes the place of another, by their ids."""
    return f'Edit "{newer}" supersedes "{older}", which is about the same fact.'


def left_out(edit: str, rival: str, stands: str = "stays") -> str:
    """What a user is told of an edit that is left out for another, by their ids."""
    return f'Edit "{edit}" is left out: "{rival}", which is about the same fact, {stands}.'


def rewrites(edit: Edit | StoredEdit, like: StoredEdit) -> bool:
    """Whether an edit gives another target to the fact of a stored one that a router takes it for."""
    return like.target != edit.target and _numbers(like.prompt) == _numbers(edit.prompt)


def _numbers(prompt: str) -> list[str]:
    """The numbers in a prompt: a set of tokens knows neither order nor count, and takes "town 12" for "town 21"."""
    return sorted(re.findall(r"\d+", prompt))


def _nearest(method: Method, batch: Sequence[Edit]) -> list[tuple[int, float]]:
    """The place and score of each edit's best match."""
    nearest, score, _ = method.router.nearest_stored(method.fingerprints(batch))
    return list(zip(nearest.tolist(), score.tolist()))
