"""The residual memories beside a down-projection: a shared matrix, and banks of rows that belong to one edit each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels import ops
from ...kernels.reference import PAGE_ROWS as PAGE
from ..views import Viewed


class RowBanks(Viewed):
    """The associative memory: every edit owns a few rows of key and value, kept in pages of 8.

    keys `[pages, 8, D]`, values `[pages, 8, d]`; row r of edit e is row `r % 8` of page `pages[e, r // 8]`. Row r says
    the answer's token r, and is read where the tokens before tell that it comes next; where nobody has told, row 0
    answers at the last prompt token, the others at generated tokens by the likeness of their keys. The banks grow by
    doubling, so that storing an edit costs the same however many there are. `fixed`: they do not grow, for a CUDA graph
    that reads them keeps their addresses.
    """

    def __init__(
        self,
        width: int,
        out_width: int,
        beta: float,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.beta = beta
        self.background = torch.zeros(width, dtype=torch.float32, device=device)
        self._keys = torch.zeros(64, PAGE, width, dtype=dtype, device=device)
        self._values = torch.zeros(64, PAGE, out_width, dtype=dtype, device=device)
        self._pages = torch.full((64, 1), -1, dtype=torch.int32, device=device)
        self._rows = torch.zeros(64, dtype=torch.int32, device=device)
        self.dtype = dtype
        self.size = 0
        self.fixed = False
        self._used_pages = 0
        self._free: list[int] = []  # pages
        self._free_places: list[int] = []

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Store one more edit: keys `[rows, D]`, values `[rows, d]`."""
        self._store(self.size, keys, values)
        self.size += 1

    def put(self, keys: Tensor, values: Tensor) -> int:
        """The same in a place that `free` gave back, if there is one. The edit's place, which stays its own."""
        place = self._free_places.pop() if self._free_places else self.size
        self._store(place, keys, values)
        self.size = max(self.size, place + 1)
        return place

    def free(self, place: int) -> None:
        """Give back an edit's place and pages; the other edits keep theirs."""
        self._free = sorted([*self._free, *(page for page in self._pages[place].tolist() if page >= 0)])
        self._pages[place] = -1
        self._rows[place] = 0
        self._free_places.append(place)

    def _store(self, edit: int, keys: Tensor, values: Tensor) -> None:
        count = -(-len(keys) // PAGE)
        # A page that an edit left may still be read through a view: it is used again when no view lives.
        reused = [] if self._views or len(self._free) < count else self._free[:count]
        fresh = 0 if reused else count
        self._reserve(edit + 1, self._used_pages + fresh, count)
        pages = reused or list(range(self._used_pages, self._used_pages + count))
        self._free = self._free[len(reused) :]
        self._used_pages += fresh
        for place, page in enumerate(pages):
            rows = slice(place * PAGE, (place + 1) * PAGE)
            for bank, of_edit in ((self._keys, keys[rows]), (self._values, values[rows])):
                bank[page, : len(of_edit)] = of_edit.to(bank)
                bank[page, len(of_edit) :] = 0
        self._pages[edit] = -1
        self._pages[edit, :count] = torch.tensor(pages, dtype=torch.int32, device="cpu")
        self._rows[edit] = len(keys)

    def remove(self, edits: set[int]) -> None:
        """Drop these edits' rows; the others move up in the table, and no row is copied."""
        kept = torch.tensor([edit for edit in range(self.size) if edit not in edits], dtype=torch.long, device="cpu")
        gone = self._pages[sorted(edits)].flatten().tolist()
        if self._views:
            self._pages, self._rows = self._pages.clone(), self._rows.clone()
        for table in (self._pages, self._rows):
            table[: len(kept)] = table[kept.to(table.device)]
        self._pages[len(kept) :] = -1
        self._rows[len(kept) :] = 0
        self._free = sorted([*self._free, *(page for page in gone if page >= 0)])
        self.size = len(kept)

    def reset(self) -> None:
        """Back to no edits."""
        self.remove(set(range(self.size)))

    def reserve(self, edits: int, rows: int = PAGE, longest: int = PAGE) -> None:
        """Room for this many edits of `rows` rows, `longest` at most: until it is used up, addresses stay."""
        pages = -(-rows // PAGE)
        self._reserve(edits, edits * pages, max(pages, -(-longest // PAGE)))

    def lay_out(self, edits: int, rows: int) -> tuple[Tensor, Tensor]:
        """Places for so many edits of `rows` rows in empty banks, all at once: one by one 100,000 would take minutes.

        Gives keys `[pages, 8, D]` and values `[pages, 8, d]`, edit after edit, to be filled.
        """
        pages = -(-rows // PAGE)
        self.reserve(edits, rows)
        count = edits * pages
        self._pages[:edits, :pages] = torch.arange(count, dtype=torch.int32, device="cpu").view(edits, pages)
        self._rows[:edits] = rows
        self._used_pages, self.size = count, edits
        return self._keys[:count], self._values[:count]

    def has_room(self, rows: Sequence[int]) -> bool:
        """Whether `put` can store edits of these many rows without growing."""
        freed, fresh = len(self._free), len(self._keys) - self._used_pages
        for pages in (-(-count // PAGE) for count in rows):
            if freed >= pages and not self._views:
                freed -= pages
            else:
                fresh -= pages
        places = len(self._free_places) + len(self._rows) - self.size
        return fresh >= 0 and len(rows) <= places and max(rows, default=0) <= PAGE * self._pages.shape[1]

    def _reserve(self, edits: int, pages: int, pages_of_one: int) -> None:
        if pages > len(self._keys):
            # Pages are not filled before they are used: at 10,000 edits that is a gigabyte that nobody touches twice.
            self._keys = _grown(self._keys, max(pages, 2 * len(self._keys)))
            self._values = _grown(self._values, max(pages, 2 * len(self._values)))
        if edits > len(self._rows):
            self._rows = _grown(self._rows, max(edits, 2 * len(self._rows)), fill=0)
            self._pages = _grown(self._pages, len(self._rows), fill=-1)
        if pages_of_one > self._pages.shape[1]:
            self._pages = torch.nn.functional.pad(self._pages, (0, pages_of_one - self._pages.shape[1]), value=-1)

    def rows_of(self, edit: int) -> tuple[Tensor, Tensor]:
        """Keys `[rows, D]` and values `[rows, d]` of one edit."""
        count = int(self._rows[edit])
        pages = self._pages[edit, : -(-count // PAGE)].long()
        return self._keys[pages].flatten(0, 1)[:count], self._values[pages].flatten(0, 1)[:count]

    def read_(self, out: Tensor, x: Tensor, route: Tensor, first: Tensor) -> None:
        """Add to `out` `[tokens, d]`, in place, what the edits in `route` say of `x` `[tokens, D]`."""
        if self.size or self.fixed:
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

    def read_rows_(self, out: Tensor, place: Tensor, row: Tensor) -> None:
        """Add to `out` `[tokens, d]`, in place, the value of row `row` of the edit at `place`, where both are not -1.

        Both int32 `[tokens]`. Other rows of `out` keep their bits: adding zero would turn -0.0 into 0.0.
        """
        edit, page = place.clamp(min=0), (row // PAGE).clamp(0, self._pages.shape[1] - 1)
        found = (place >= 0) & (row >= 0) & (row < self._rows[edit])
        at = self._pages[edit, page].clamp(min=0) * PAGE + row.clamp(min=0) % PAGE
        torch.where(found[:, None], out + self._values.flatten(0, 1)[at].to(out), out, out=out)

    def norms(self) -> dict[str, float]:
        rows = [self.rows_of(edit) for edit in range(self.size)]
        values = torch.stack([values.float().norm() for _, values in rows])
        return {
            "norm": float(values.norm()),
            "norm_per_edit": float(values.square().mean().sqrt()),
            "largest_edit": float(values.max()),
            "bytes": sum(part.nbytes for pair in rows for part in pair),
        }

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


def _grown(tensor: Tensor, length: int, fill: float | None = None) -> Tensor:
    grown = tensor.new_empty((length, *tensor.shape[1:]))
    grown[: len(tensor)] = tensor
    if fill is not None:
        grown[len(tensor) :] = fill
    return grown
