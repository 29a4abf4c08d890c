"""Rows of many edits, of which those that were asked for are where the layer reads."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..views import Viewed
from .row_banks import RowBanks, norms_of, state_of
from .row_form import Rows


class PagedRows(Viewed):
    """The associative memory of an edited model: an edit's rows come to `banks` when a request is first about it.

    Edits have places, as their router counts them, and each a number by which `read` finds its rows again: a ledger's
    entry. `locate` brings rows in, and tells where: that, and not its place, is what the layer is told of an edit.
    Edits that were appended without a number are nowhere else, and stay in the banks.
    """

    def __init__(self, banks: RowBanks) -> None:
        super().__init__()
        self.banks = banks
        self.read: Callable[[int], Rows] | None = None
        """Gives the rows of the edit of a number, checked; raises CorrigendaError where they are damaged or gone."""
        self._numbers: list[int] = []
        self._slots: OrderedDict[int, int] = OrderedDict()
        """Where in the banks each number's rows are."""
        self._unnumbered = 0

    @property
    def size(self) -> int:
        return len(self._numbers)

    @property
    def resident(self) -> int:
        """How many edits' rows are in the banks."""
        return len(self._slots)

    # Edits

    def append(self, keys: Tensor, values: Tensor, scales: Tensor | None = None) -> None:
        """Store one more edit, whose rows are nowhere else."""
        self._unnumbered -= 1
        self._slots[self._unnumbered] = self.banks.put(keys, values, scales)
        self._numbers.append(self._unnumbered)

    def place(self, numbers: Sequence[int]) -> None:
        """Store edits by their numbers, whose rows are read when they are asked for."""
        self._numbers += numbers

    def hold(self, number: int, rows: Rows) -> None:
        """Take the rows of a placed edit in, which are at hand."""
        if number not in self._slots:
            self._slots[number] = self.banks.put(*rows)

    def remove(self, edits: set[int]) -> None:
        """Forget these edits, by place; the others move up."""
        gone = [self._numbers[place] for place in edits]
        self._numbers = [number for place, number in enumerate(self._numbers) if place not in edits]
        for number in gone:
            if number in self._slots and not (number < 0 and self._views):  # a view may still ask for it
                self.banks.free(self._slots.pop(number))

    def reset(self) -> None:
        """Back to no edits."""
        self.remove(set(range(self.size)))

    def reserve(self, edits: int, rows: int) -> None:
        """Room in the banks for this many edits of `rows` rows: until it is used up, addresses stay."""
        self.banks.reserve(edits, rows)

    def view(self) -> PagedRows:
        """The memory as it is now, for a reader: edits that are stored or removed later do not show there."""
        view = super().view()
        view._numbers = list(self._numbers)
        return view

    # Reading

    def locate(self, route: Tensor) -> Tensor:
        """int32, on the CPU: where in the banks the edits at these places (-1: none) have their rows, brought in."""
        slots = [-1 if place < 0 else self._bring(self._numbers[place]) for place in route.tolist()]
        return torch.tensor(slots, dtype=torch.int32, device="cpu")

    def _bring(self, number: int) -> int:
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = self.banks.put(*self.read(number))
        return slot

    def bring_all(self) -> None:
        """Bring in the rows of every edit: they are asked for no more."""
        for number in self._numbers:
            self._bring(number)

    def kept_rows(self, place: int) -> Rows:
        """Those of the edit at a place, as they are kept, brought in or not."""
        number = self._numbers[place]
        return self.banks.kept_rows(self._slots[number]) if number in self._slots else self.read(number)

    def rows_of(self, place: int) -> tuple[Tensor, Tensor]:
        """Keys `[rows, D]` and values `[rows, d]` of the edit at a place, as they are read."""
        rows = self.kept_rows(place)
        return rows.keys, rows.read_values

    def _rows(self) -> Iterator[Rows]:
        return map(self.kept_rows, range(self.size))

    def read_(self, out: Tensor, x: Tensor, route: Tensor, first: Tensor) -> None:
        """As `RowBanks.read_`, of what `locate` gave."""
        self.banks.read_(out, x, route, first)

    def read_rows_(self, out: Tensor, place: Tensor, row: Tensor) -> None:
        """As `RowBanks.read_rows_`, of what `locate` gave."""
        self.banks.read_rows_(out, place, row)

    def norms(self) -> dict[str, float]:
        return norms_of(self._rows())

    def state(self) -> dict[str, Tensor]:
        """The rows of all edits, one after the other, and how many each has; read where they are not at hand."""
        return state_of(list(self._rows()), self.banks)
