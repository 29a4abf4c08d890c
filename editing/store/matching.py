"""Which stored edits the records of a file are, and what has become of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ..edits.edit import Edit
from .history import APPLIED, SUPERSEDED, History, StoredEdit


class Matched(NamedTuple):
    """The records to be scored, under the ids by which they are stored; and how many of the file are not in effect.

    superseded  those that are left out here: a later edit is about the same fact
    missing     those that are not stored, or were undone
    """

    edits: list[Edit]
    superseded: int
    missing: int


def matched(edits: Sequence[Edit], history: History) -> Matched:
    """Find each record by its prompt and target, and of several such by its id.

    An id alone says nothing: records without one are numbered after their file's name, and one that is taken gets a
    number.
    """
    statuses = history.statuses()
    found, superseded, missing = [], 0, 0
    for edit in edits:
        same = [history.edits[seq] for seq in history.same_prompt(edit.prompt)]
        own = _own(edit, same, statuses, history)
        if own is not None and statuses[own.seq] == APPLIED:
            found.append(replace(edit, id=own.id))
        elif (own is not None and statuses[own.seq] == SUPERSEDED) or any(statuses[s.seq] == APPLIED for s in same):
            superseded += 1
        else:
            missing += 1
            found.append(replace(edit, id=None) if history.find(edit.id) else edit)
    return Matched(found, superseded, missing)


def _own(edit: Edit, same: Sequence[StoredEdit], statuses: dict[int, str], history: History) -> StoredEdit | None:
    """The stored edit that a record became, of those with its prompt."""
    alike = [stored for stored in same if stored.target == edit.target]
    declined = history.declined_as(edit.id)
    said = None if declined is None else (declined.prompt, declined.target)
    if said == (edit.prompt, edit.target) and all(stored.id != edit.id for stored in alike):
        return None
    return max(alike, key=lambda s: (s.id == edit.id, statuses[s.seq] == APPLIED, s.seq), default=None)
