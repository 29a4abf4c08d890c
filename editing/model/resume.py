"""Going on with a stream that was broken off: which of its edits are recorded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ..edits.edit import Edit
from ..errors import CorrigendaError
from ..store.history import History


class Recorded:
    """Passes on the edits of a stream that a store does not have; those that it declined count as recorded.

    `passed` is how many of the stream are behind. An edit with an id is known by it, and must be the same; one without
    is known by all it says.
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
        if edit.id is not None:
            stored = self._history.find(edit.id)
            if stored is not None and stored.lost:  # in a repair: it is to be written again
                return False
            body = self._history.declined_as(edit.id) if stored is None else stored.body
            if body is None:
                return False
            if _contents(edit) != _contents(Edit.from_dict(body["edit"])):
                raise CorrigendaError(
                    f'The edit "{edit.id}" of this stream is not the one that is stored under that id: resume with '
                    "the same file, or give it another id."
                )
            return True
        for seq in self._history.same_prompt(edit.prompt):
            stored = self._history.edits[seq]
            if seq not in self._used and not stored.lost and _contents(stored.edit) == _contents(edit):
                self._used.add(seq)
                return True
        return False


def _contents(edit: Edit) -> dict[str, Any]:
    return {name: value for name, value in edit.to_dict().items() if name not in ("id", "metadata")}
