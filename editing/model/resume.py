"""Going on with a stream that was broken off: which of its edits are recorded."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from ..edits.edit import Edit
from ..edits.identifiers import numbered_ids
from ..store.history import History, StoredDeclined, StoredEdit, normalised_prompt


class Recorded:
    """Passes on the edits of a stream that a store does not have; those that it declined count as recorded.

    `passed` is how many of the stream are behind. An edit is known by all it says, and by its id if it has one.
    What was left out for a later edit of its prompt is kept by that prompt: in `waiting`, where the stream ended before
    that one came; in `owed`, where it does not hold, and the stream ended before an earlier one was written for it.
    """

    def __init__(self, history: History | None) -> None:
        self.passed = 0
        self.waiting: dict[str, list[Edit]] = {}
        self.owed: dict[str, list[Edit]] = {}
        self._history = history
        self._used: set[int] = set()

    def skip(self, stream: Iterable[Edit]) -> Iterator[Edit]:
        """The edits of a stream that are still to be written."""
        for edit in stream:
            if self._history is not None and isinstance(edit, Edit) and self._has(edit):
                self.passed += 1
            else:
                yield edit

    def _has(self, edit: Edit) -> bool:
        wanted = _contents(edit)
        if edit.id is None:
            return self._take((self._history.edits[seq] for seq in self._history.same_prompt(edit.prompt)), wanted)
        # An id that was another edit's when this one was written has got a number.
        for name in dict.fromkeys(itertools.chain([edit.id], _used(self._history, edit.id))):
            declined = self._history.declined_as(name)
            if self._take(self._history.named(name), wanted):
                return True
            if declined is not None and _contents(Edit.from_dict(declined.body["edit"])) == wanted:
                self._keep(edit, declined)
                return True
        return False

    def _keep(self, edit: Edit, declined: StoredDeclined) -> None:
        """Keep an edit that was left out, unless that for which it was, or another of its prompt since, is written."""
        history = self._history
        later = (history.edits[seq] for seq in history.same_prompt(declined.prompt) if seq > declined.seq)
        came = [*history.named(declined.kept), *later]
        if all(one.unsolved for one in came):
            kept = self.owed if came else self.waiting
            kept.setdefault(normalised_prompt(edit.prompt), []).append(replace(edit, id=declined.id))

    def _take(self, stored: Iterable[StoredEdit], wanted: dict[str, Any]) -> bool:
        """Whether one of `stored` says what is `wanted`, and no edit of the stream was it before."""
        for one in stored:
            # In a repair a lost one is to be written again.
            if one.seq not in self._used and not one.lost and _contents(one.edit) == wanted:
                self._used.add(one.seq)
                return True
        return False


def _used(history: History, name: str) -> Iterator[str]:
    """The ids after `name` that were given away for it."""
    return itertools.takewhile(
        lambda other: history.named(other) or history.declined_as(other) is not None, numbered_ids(name)
    )


def _contents(edit: Edit) -> dict[str, Any]:
    return {name: value for name, value in edit.to_dict().items() if name not in ("id", "metadata")}
