"""Banks of rows of several forms, which a layer reads as one memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .row_banks import RowBanks
from .row_form import RowForm, Rows

_SHIFT = 24
"""Bits of a place that say where in its banks an edit is; those above say in which."""

_WITHIN = (1 << _SHIFT) - 1


class MixedBanks:
    """Banks by the form of their rows. An edit's place says which banks have its rows, and its place there.

    Banks come into being with the first edit of their form, and read with the background of all. A layer reads each of
    them at the tokens whose edits are in it, so what an edit adds has the bits that banks of its form alone give, and a
    token without one is not written. Those of the first form have the places that they would have alone.
    `fixed`: none come, and none grow, for a CUDA graph reads those that there are.
    """

    def __init__(
        self, width: int, out_width: int, beta: float, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.background = torch.zeros(width, dtype=torch.float32, device=device)
        self.fixed = False
        self._banks: dict[RowForm, RowBanks] = {}
        self._make: Callable[[RowForm], RowBanks] = lambda form: RowBanks(width, out_width, beta, device, dtype, form)

    def __iter__(self) -> Iterator[RowBanks]:
        return iter(self._banks.values())

    def forms(self) -> list[RowForm]:
        """Of the rows that there are banks for."""
        return list(self._banks)

    def takes(self, form: RowForm) -> bool:
        """Whether edits of this form can be stored: those of fixed banks alone, once they are."""
        return form in self._banks or not self.fixed

    def of(self, form: RowForm) -> RowBanks:
        """The banks of this form, made where there are none: between two passes, for each goes through them all."""
        if form not in self._banks:
            banks = self._make(form)
            banks.background = self.background
            self._banks[form] = banks
        return self._banks[form]

    def fix(self) -> None:
        """From now on no banks come and none grow."""
        self.fixed = True
        for banks in self:
            banks.fixed = True

    def place(self, form: RowForm, within: int) -> int:
        """The place of the edit that is at `within` in the banks of this form."""
        return list(self._banks).index(form) << _SHIFT | within

    def put(self, form: RowForm, rows: Rows) -> int:
        """Store an edit's rows (`RowBanks.put`): its place."""
        within = self.of(form).put(*rows)
        return self.place(form, within)

    def free(self, place: int) -> None:
        """Give back an edit's place; the other edits keep theirs."""
        self._at(place).free(place & _WITHIN)

    def kept_rows(self, place: int) -> Rows:
        """Those of one edit, as they are kept."""
        return self._at(place).kept_rows(place & _WITHIN)

    def _at(self, place: int) -> RowBanks:
        return list(self._banks.values())[place >> _SHIFT]

    def _within(self, place: Tensor) -> Iterator[tuple[RowBanks, Tensor]]:
        """Banks with the places in them, -1 at tokens whose edits are elsewhere."""
        if len(self._banks) == 1:
            yield next(iter(self)), place
            return
        for number, banks in enumerate(self):
            yield banks, torch.where(place >> _SHIFT == number, place & _WITHIN, -1)

    def read_(self, out: Tensor, x: Tensor, route: Tensor, first: Tensor) -> None:
        """As `RowBanks.read_`, by places here."""
        for banks, within in self._within(route):
            banks.read_(out, x, within, first)

    def read_rows_(self, out: Tensor, place: Tensor, row: Tensor) -> None:
        """As `RowBanks.read_rows_`, by places here."""
        for banks, within in self._within(place):
            banks.read_rows_(out, within, row)

    def buffers(self) -> tuple[Tensor, ...]:
        """All that the layer reads."""
        return tuple(buffer for banks in self for buffer in banks.buffers())
