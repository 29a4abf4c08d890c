"""Going on with a stream that was broken off: which of its edits are recorded."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from ..edits.edit import Edit
from ..edits.identifiers import numbered_ids
from ..store.history import History, StoredDeclined, StoredEdit


class Recorded:
    """Passes on the edits of a stream that a store does not have; those that it declined for what is written count as recorded.

    `passed` is how many of the stream are behind. An edit is known by all it says, and by its id if it has one.
    """

    def __init__(self, history: History | None) -> None:
        self.passed = 0
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
            if self._take(self._history.named(name), wanted) or (
                declined is not None
                and _contents(Edit.from_dict(declined.body["edit"])) == wanted
                and self._stands(declined)
            ):
                return True
        return False

    def _stands(self, declined: StoredDeclined) -> bool:
        """Whether the edit that one was left out for is written, or another was in its stead.

        A stream may have ended before that edit came; or after it was found not to hold, and before an earlier one was
        written for it.
        """
        history = self._history
        later = (history.edits[seq] for seq in history.same_prompt(declined.prompt) if seq > declined.seq)
        return any(not one.unsolved for one in itertools.chain(history.named(declined.kept), later))

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
