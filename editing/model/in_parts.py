"""Edits on a model in parts (`Parts`): its processes make the same calls, and each keeps the same memory and ledger.

The first one has the folder. What it appends to its ledger, the others append to one of their own, in memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from ..backbone.parts import Parts
from ..errors import CorrigendaError
from ..methods.method import Method
from ..methods.record import Solved, on_cpu
from ..store.ledger import New
from ..store.store import EditStore

T = TypeVar("T")


def check_in_parts(method: Method) -> None:
    """Raise where edits of a method need the whole model in one process, and this one holds a part of it."""
    if method.decoder.parts is None:
        return
    size = method.decoder.parts.size
    if any(type(module).__module__.startswith("peft.") for module in method.decoder.model.modules()):
        raise CorrigendaError(
            f"A model that is split over {size} processes cannot be edited beside an adapter of PEFT: merge it before."
        )
    if not method.runs_in_parts or method.router.needs_features:
        routed = f' with router="{vars(method.config)["router"]}"' if method.runs_in_parts else ""
        raise CorrigendaError(
            f'Edits of the method "{method.config.method}"{routed} need the whole model in one process, and this one '
            f'is split over {size}: use "associative" edits that are found by text, or load the model whole.'
        )


class Processes:
    """Who keeps the edits of one model: this process, or all that hold a part of it, of which the first one decides."""

    def __init__(self, parts: Parts | None) -> None:
        self._parts = parts

    @property
    def follows(self) -> bool:
        """Whether another process has the folder."""
        return self._parts is not None and self._parts.rank != 0

    def check_alone(self) -> None:
        """Raise where there are several."""
        if self._parts is not None:
            raise CorrigendaError(
                "A model that is split over processes does not take in what others write, for each of them might read "
                "another state of it: load its edits again."
            )

    def once(self, do: Callable[[], T]) -> T:
        """Do what is done once, whatever the number of processes."""
        return do() if self._parts is None else self._parts.first(do)

    def check_same(self, store: EditStore | None) -> None:
        """Raise, in each of them, where they do not all have the same ledger."""
        if self._parts is not None:
            self._parts.check_same("edits", "none" if store is None else str(store.snapshot))

    def solved(self, solved: list[Solved]) -> list[Solved]:
        """What the first one has found of a batch, which no rounding elsewhere may differ from."""
        return solved if self._parts is None else self._parts.agreed(on_cpu(solved))

    def begin(self, make: Callable[[], EditStore]) -> EditStore:
        """A new store, which `make` makes in the first one: the others begin theirs as it does."""
        made: list[EditStore] = []

        def begin() -> New:
            made.append(make())
            return made[0].first_entry

        first = self.once(begin)
        return made[0] if made else EditStore.begun_as(first)

    def keep(self, store: EditStore) -> None:
        """From now on append to this store what the first one appends to its own."""
        if self._parts is not None:
            store.follows = functools.partial(_append, self._parts)


def _append(parts: Parts, entries: Sequence[New], write: Callable[[Iterable[New]], list[int]]) -> list[int]:
    """Once they are on the first one's disk; where that fails, nowhere."""
    numbers: list[int] = []

    def append() -> Sequence[New]:
        numbers[:] = write(entries)
        return entries

    told = parts.first(append)
    return numbers if parts.rank == 0 else write(told)
