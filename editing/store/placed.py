"""Stored edits by their places in a memory, each read from its ledger when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

from ..edits.edit import Edit
from .stored import StoredEdit


class PlacedEdits(Sequence[Edit]):
    """The edits of one moment: later ones do not show here. Equal to any list of the same edits."""

    def __init__(self, stored: Iterable[StoredEdit] = ()) -> None:
        self.stored = tuple(stored)

    @property
    def ids(self) -> list[str]:
        return [stored.id for stored in self.stored]

    @overload
    def __getitem__(self, place: int) -> Edit: ...

    @overload
    def __getitem__(self, place: slice) -> list[Edit]: ...

    def __getitem__(self, place: int | slice) -> Edit | list[Edit]:
        if isinstance(place, slice):
            return [stored.edit for stored in self.stored[place]]
        return self.stored[place].edit

    def __len__(self) -> int:
        return len(self.stored)

    def __iter__(self) -> Iterator[Edit]:
        return (stored.edit for stored in self.stored)

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.ids})"
