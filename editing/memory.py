"""The residual memories beside a down-projection: a shared matrix, and banks of rows that belong to one edit each."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels import ops
from ..kernels.reference import PAGE_ROWS as PAGE


class SharedMatrix:
    """MEMOIR's memory: one residual matrix W, read through the routed edit's mask m as `y += W (m * x)`.

    `weight` is W transposed, `[D, d]` fp32, so that the columns an edit may use are contiguous rows. The masks are the
    router's: what names an edit also says where it is stored.
    """

    def __init__(self, width: int, out_width: int, device: torch.device) -> None:
        self.weight = torch.zeros(width, out_width, device=device)
        self.masks: Tensor | None = None

    def read_(self, out: Tensor, x: Tensor, route: Tensor, first: Tensor) -> None:
        """Add to `out` `[tokens, d]`, in place, what the edits in `route` say of `x` `[tokens, D]`."""
        if self.masks is not None and len(self.masks):
            ops.masked_linear_(out, x, self.weight, self.masks, route)


class RowBanks:
    """The associative memory: every edit owns a few rows of key and value, kept in pages of 8.

    keys `[pages, 8, D]`, values `[pages, 8, d]`; row r of edit e is row `r % 8` of page `pages[e, r // 8]`. Row 0
    answers at the last prompt token, the others at generated tokens by the likeness of their keys. The banks grow by
    doubling, so that storing an edit costs the same however many there are.
    """

    def __init__(
        self,
        width: int,
        out_width: int,
        beta: float,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.beta = beta
        self.background = torch.zeros(width, device=device)
        self._keys = torch.zeros(64, PAGE, width, dtype=dtype, device=device)
        self._values = torch.zeros(64, PAGE, out_width, dtype=dtype, device=device)
        self._pages = torch.full((64, 1), -1, dtype=torch.int32, device=device)
        self._rows = torch.zeros(64, dtype=torch.int32, device=device)
        self.size = 0
        self._used_pages = 0

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Store one more edit: keys `[rows, D]`, values `[rows, d]`."""
        count = -(-len(keys) // PAGE)
        self._reserve(self.size + 1, self._used_pages + count, count)
        start = self._used_pages * PAGE
        self._keys.view(-1, self._keys.shape[2])[start : start + len(keys)] = keys.to(self._keys)
        self._values.view(-1, self._values.shape[2])[start : start + len(values)] = values.to(self._values)
        self._pages[self.size, :count] = torch.arange(self._used_pages, self._used_pages + count)
        self._rows[self.size] = len(keys)
        self._used_pages += count
        self.size += 1

    def remove(self, edits: set[int]) -> None:
        """Drop these edits' rows; the others move up and keep their bits."""
        kept = [[part.clone() for part in self.rows_of(edit)] for edit in range(self.size) if edit not in edits]
        self.size = self._used_pages = 0
        self._pages.fill_(-1)
        self._rows.zero_()
        for keys, values in kept:
            self.append(keys, values)

    def _reserve(self, edits: int, pages: int, pages_of_one: int) -> None:
        if pages > len(self._keys):
            self._keys = _grown(self._keys, max(pages, 2 * len(self._keys)))
            self._values = _grown(self._values, max(pages, 2 * len(self._values)))
        if edits > len(self._rows):
            self._rows = _grown(self._rows, 2 * len(self._rows))
            self._pages = _grown(self._pages, len(self._rows), fill=-1)
        if pages_of_one > self._pages.shape[1]:
            self._pages = torch.nn.functional.pad(self._pages, (0, pages_of_one - self._pages.shape[1]), value=-1)

    def rows_of(self, edit: int) -> tuple[Tensor, Tensor]:
        """Keys `[rows, D]` and values `[rows, d]` of one edit."""
        count = int(self._rows[edit])
        start = int(self._pages[edit, 0]) * PAGE
        keys, values = self._keys.flatten(0, 1), self._values.flatten(0, 1)
        return keys[start : start + count], values[start : start + count]

    def read_(self, out: Tensor, x: Tensor, route: Tensor, first: Tensor) -> None:
        """Add to `out` `[tokens, d]`, in place, what the edits in `route` say of `x` `[tokens, D]`."""
        if self.size:
            ops.associative_read_(
                out,
                x,
                first,
                self._keys,
                self._values,
                self._pages,
                self._rows,
                route,
                self.background,
                self.beta,
            )

    def state(self) -> dict[str, Tensor]:
        """The rows of all edits, one after the other, and how many each has."""
        rows = [self.rows_of(edit) for edit in range(self.size)]
        empty = self._keys.flatten(0, 1)[:0], self._values.flatten(0, 1)[:0]
        keys, values = (torch.cat([pair[i] for pair in rows] or [empty[i]]) for i in (0, 1))
        return {
            "memory.keys": keys,
            "memory.values": values,
            "memory.rows": self._rows[: self.size].clone(),
            "memory.background": self.background,
        }

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self.background = tensors["memory.background"].to(self.background)
        counts = tensors["memory.rows"].tolist()
        for keys, values in zip(tensors["memory.keys"].split(counts), tensors["memory.values"].split(counts)):
            self.append(keys, values)


def _grown(tensor: Tensor, length: int, fill: float = 0) -> Tensor:
    grown = tensor.new_full((length, *tensor.shape[1:]), fill)
    grown[: len(tensor)] = tensor
    return grown
