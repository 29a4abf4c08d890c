"""Rows of many edits, of which those that were asked for are where the layer reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..errors import CorrigendaError
from ..views import Viewed
from .paged_banks import PagedBanks
from .row_banks import RowBanks, norms_of, state_of
from .row_form import Rows


class PagedRows(Viewed):
    """The associative memory of an edited model: an edit's rows come to `banks` when a request is about it.

    Edits have places, as their router counts them, and each a number by which `read` finds its rows again: a ledger's
    entry. `locate` brings rows in, and tells where: that, and not its place, is what the layer is told of an edit.
    What it brought stays until `release`. Edits that were appended without a number are nowhere else, and always stay.
    """

    def __init__(self, banks: RowBanks) -> None:
        super().__init__()
        self.banks = banks
        self.paged = PagedBanks(banks)
        self.read: Callable[[int], Rows] | None = None
        """Gives the rows of the edit of a number, checked; raises CorrigendaError where they are damaged or gone."""
        self._numbers: list[int] = []
        self._unnumbered = 0
        self._asked: set[int] = set()
        """Numbers that what is under way reads."""

    @property
    def size(self) -> int:
        return len(self._numbers)

    # Edits

    def append(self, keys: Tensor, values: Tensor, scales: Tensor | None = None) -> None:
        """Store one more edit, whose rows are nowhere else."""
        if self.paged.pages is not None:
            raise CorrigendaError("Edits without a store cannot make room for others: leave out `resident`.")
        self._unnumbered -= 1
        self.paged.put(self._unnumbered, Rows(keys, values, scales))
        self._numbers.append(self._unnumbered)

    def place(self, numbers: Sequence[int]) -> None:
        """Store edits by their numbers, whose rows are read when they are asked for."""
        self._numbers += numbers

    def hold(self, number: int, rows: Rows) -> None:
        """Take the rows of a placed edit in, which are at hand, where they need nobody's room."""
        if self.paged.pages is None and number not in self.paged:
            self.paged.put(number, rows)

    def remove(self, edits: set[int]) -> None:
        """Forget these edits, by place; the others move up."""
        gone = [self._numbers[place] for place in edits]
        self._numbers = [number for place, number in enumerate(self._numbers) if place not in edits]
        for number in gone:
            if not (number < 0 and self._views):  # a view may still ask for it
                self.paged.drop(number)

    def reset(self) -> None:
        """Back to no edits."""
        self.remove(set(range(self.size)))

    def reserve(self, edits: int, rows: int) -> None:
        """Room in the banks for this many edits of `rows` rows: until it is used up, addresses stay."""
        if self.paged.pages is None:
            self.banks.reserve(edits, rows)

    def view(self) -> PagedRows:
        """The memory as it is now, for a reader: edits that are stored or removed later do not show there."""
        view = super().view()
        view._numbers = list(self._numbers)
        return view

    # Reading

    def locate(self, route: Tensor) -> Tensor:
        """int32, on the CPU: where in the banks the edits at these places (-1: none) have their rows, brought in."""
        places = route.tolist()
        self._asked.update(self._numbers[place] for place in places if place >= 0)
        slots = [-1 if place < 0 else self._bring(self._numbers[place]) for place in places]
        return torch.tensor(slots, dtype=torch.int32, device="cpu")

    def release(self) -> None:
        """What was located is read no longer, and may make room."""
        self._asked.clear()

    def _bring(self, number: int) -> int:
        return self.paged.bring(number, lambda: self.read(number), self._asked)

    def bring_all(self) -> None:
        """Bring in the rows of every edit: they are asked for no more."""
        if self.paged.pages is not None:
            raise CorrigendaError(
                "With `resident` answers are read from the store of their edits, which cannot be given back: detach "
                "the edits instead."
            )
        for number in self._numbers:
            self._bring(number)

    def kept_rows(self, place: int) -> Rows:
        """Those of the edit at a place, as they are kept, brought in or not."""
        number = self._numbers[place]
        return self.banks.kept_rows(self.paged.slot(number)) if number in self.paged else self.read(number)

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
