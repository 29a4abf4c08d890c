"""The residual memories beside a down-projection: a shared matrix, and banks of rows that belong to one edit each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ...kernels import ops
from ...kernels.reference import PAGE_ROWS as PAGE
from ..views import Viewed
from .row_form import WHOLE, RowForm, Rows


class RowBanks(Viewed):
    """The associative memory: every edit owns a few rows of key and value, kept in pages of 8.

    keys `[pages, 8, D]`, values `[pages, 8, d]`, or smaller (`RowForm`); row r of edit e is row `r % 8` of page
    `pages[e, r // 8]`. Row r says the answer's token r, and is read where the tokens before tell that it comes
    next; where nobody has told, row 0 answers at the last prompt token, the others at generated tokens by the
    likeness of their keys. The banks grow by doubling, so that storing an edit costs the same however many there
    are. `fixed`: they do not grow, for a CUDA graph that reads them keeps their addresses.
    """

    def __init__(
        self,
        width: int,
        out_width: int,
        beta: float,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        form: RowForm = WHOLE,
    ) -> None:
        super().__init__()
        self.beta = beta
        self.form = form
        self.background = torch.zeros(width, dtype=torch.float32, device=device)
        self._projection = form.projection(width, device)
        keys = width if form.key_dimensions is None else form.key_dimensions
        self._origin = torch.zeros(keys, dtype=torch.float32, device=device)
        self._keys = torch.zeros(64, PAGE, keys, dtype=form.key_dtype(dtype), device=device)
        self._values = torch.zeros(64, PAGE, out_width, dtype=form.dtype(dtype), device=device)
        self._scales = torch.ones(64, PAGE, dtype=torch.float32, device=device) if form.has_scales else None
        self._pages = torch.full((64, 1), -1, dtype=torch.int32, device=device)
        self._rows = torch.zeros(64, dtype=torch.int32, device=device)
        self.dtype = dtype
        self.size = 0
        self.fixed = False
        self._used_pages = 0
        self._free: list[int] = []  # pages
        self._free_places: list[int] = []

    def append(self, keys: Tensor, values: Tensor, scales: Tensor | None = None) -> None:
        """Store one more edit: keys `[rows, D]`, values `[rows, d]`; with int8 values their scales `[rows]`."""
        self._store(self.size, keys, values, scales)
        self.size += 1

    def put(self, keys: Tensor, values: Tensor, scales: Tensor | None = None) -> int:
        """The same in a place that `free` gave back, if there is one. The edit's place, which stays its own."""
        place = self._free_places.pop() if self._free_places else self.size
        self._store(place, keys, values, scales)
        self.size = max(self.size, place + 1)
        return place

    def free(self, place: int) -> None:
        """Give back an edit's place and pages; the other edits keep theirs."""
        self._free = sorted([*self._free, *(page for page in self._pages[place].tolist() if page >= 0)])
        self._pages[place] = -1
        self._rows[place] = 0
        self._free_places.append(place)

    def _store(self, edit: int, keys: Tensor, values: Tensor, scales: Tensor | None) -> None:
        count = -(-len(keys) // PAGE)
        # A page that an edit left may still be read through a view: it is used again when no view lives.
        reused = [] if self._views else self._free[:count]
        fresh = count - len(reused)
        self._reserve(edit + 1, self._used_pages + fresh, count)
        pages = [*reused, *range(self._used_pages, self._used_pages + fresh)]
        self._free = self._free[len(reused) :]
        self._used_pages += fresh
        for place, page in enumerate(pages):
            rows = slice(place * PAGE, (place + 1) * PAGE)
            parts = [(self._keys, keys[rows]), (self._values, values[rows])]
            if self._scales is not None:
                parts.append((self._scales, scales[rows]))
            for bank, of_edit in parts:
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

    def set_aside(self, edits: int, rows: int, longest: int) -> int:
        """Room for this many edits of `rows` rows, and for no more, in empty banks: how many pages that is.

        longest: how many rows one of them may have.
        """
        pages = edits * self.pages_of(rows)
        for name in ("_keys", "_values", "_scales"):
            bank = getattr(self, name)
            if bank is not None:
                setattr(self, name, bank.new_zeros(pages, *bank.shape[1:]))
        self._rows = self._rows.new_zeros(pages)
        self._pages = self._pages.new_full((pages, min(pages, self.pages_of(longest))), -1)
        return pages

    @staticmethod
    def pages_of(rows: int) -> int:
        """How many pages this many rows take."""
        return -(-rows // PAGE)

    @property
    def pages_in_use(self) -> int:
        return self._used_pages - len(self._free)

    @property
    def lengths(self) -> Tensor:
        """int32 `[edits]`: how many rows each edit has."""
        return self._rows

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
            reused = 0 if self._views else min(freed, pages)
            freed, fresh = freed - reused, fresh - (pages - reused)
        places = len(self._free_places) + len(self._rows) - self.size
        return fresh >= 0 and len(rows) <= places and max(rows, default=0) <= PAGE * self._pages.shape[1]

    def _reserve(self, edits: int, pages: int, pages_of_one: int) -> None:
        if pages > len(self._keys):
            # Pages are not filled before they are used: at 10,000 edits that is a gigabyte that nobody touches twice.
            self._keys = _grown(self._keys, max(pages, 2 * len(self._keys)))
            self._values = _grown(self._values, len(self._keys))
            if self._scales is not None:
                self._scales = _grown(self._scales, len(self._keys))
        if edits > len(self._rows):
            self._rows = _grown(self._rows, max(edits, 2 * len(self._rows)), fill=0)
            self._pages = _grown(self._pages, len(self._rows), fill=-1)
        if pages_of_one > self._pages.shape[1]:
            self._pages = torch.nn.functional.pad(self._pages, (0, pages_of_one - self._pages.shape[1]), value=-1)

    def kept_rows(self, edit: int) -> Rows:
        """Those of one edit, as they are kept."""
        count = int(self._rows[edit])
        pages = self._pages[edit, : -(-count // PAGE)].long()
        banks = (self._keys, self._values, self._scales)
        return Rows(*(None if bank is None else bank[pages].flatten(0, 1)[:count] for bank in banks))

    def rows_of(self, edit: int) -> tuple[Tensor, Tensor]:
        """Keys `[rows, D]` and values `[rows, d]` of one edit, as they are read."""
        rows = self.kept_rows(edit)
        return rows.keys, rows.read_values

    def projected(self, centred: Tensor) -> Tensor:
        """Inputs `[..., D]`, less the background, in the space of keys."""
        return centred if self._projection is None else centred.float() @ self._projection

    def read_(self, out: Tensor, x: Tensor, route: Tensor, first: Tensor) -> None:
        """Add to `out` `[tokens, d]`, in place, what the edits in `route` say of `x` `[tokens, D]`."""
        if not (self.size or self.fixed):
            return
        background = self.background
        if self._projection is not None:
            if x.device.type == "cpu" and not bool((route >= 0).any()):
                return  # as where tokens tell the rows: on a CPU the product costs more than looking
            x, background = self.projected(x - background), self._origin
        rows = (self._keys, self._values, self._pages, self._rows)
        ops.associative_read_(out, x, first, *rows, route, background, self.beta, self._scales)

    def read_rows_(self, out: Tensor, place: Tensor, row: Tensor) -> None:
        """Add to `out` `[tokens, d]`, in place, the value of row `row` of the edit at `place`, where both are not -1.

        Both int32 `[tokens]`. Other rows of `out` keep their bits: adding zero would turn -0.0 into 0.0.
        """
        edit, page = place.clamp(min=0), (row // PAGE).clamp(0, self._pages.shape[1] - 1)
        found = (place >= 0) & (row >= 0) & (row < self._rows[edit])
        at = self._pages[edit, page].clamp(min=0) * PAGE + row.clamp(min=0) % PAGE
        value = self._values.flatten(0, 1)[at]
        if self._scales is not None:
            value = value * self._scales.flatten()[at, None]
        torch.where(found[:, None], out + value.to(out), out, out=out)

    def norms(self) -> dict[str, float]:
        return norms_of(map(self.kept_rows, range(self.size)))

    def state(self) -> dict[str, Tensor]:
        """The rows of all edits, one after the other, and how many each has."""
        return state_of([self.kept_rows(edit) for edit in range(self.size)], self)

    def buffers(self) -> tuple[Tensor, ...]:
        """All that the layer reads."""
        found = (self._keys, self._values, self._scales, self._pages, self._rows, self.background)
        return tuple(buffer for buffer in found if buffer is not None)

    def no_rows(self) -> Rows:
        """Those of no edit, as they are kept."""
        banks = (self._keys, self._values, self._scales)
        return Rows(*(None if bank is None else bank.flatten(0, 1)[:0] for bank in banks))


def norms_of(rows: Iterable[Rows]) -> dict[str, float]:
    """What `corrigenda report` says of the rows of edits."""
    found = [(float(of_edit.read_values.float().norm()), of_edit.nbytes) for of_edit in rows]
    values = torch.tensor([norm for norm, _ in found], dtype=torch.float32, device="cpu")
    return {
        "norm": float(values.norm()),
        "norm_per_edit": float(values.square().mean().sqrt()),
        "largest_edit": float(values.max()),
        "bytes": sum(size for _, size in found),
    }


def state_of(rows: Sequence[Rows], banks: RowBanks) -> dict[str, Tensor]:
    """Rows of edits, one after the other, how many each has, and the background that keys are over."""
    found = {}
    for name, none in banks.no_rows()._asdict().items():
        if none is not None:
            found[f"memory.{name}"] = torch.cat([none, *(getattr(of_edit, name).to(none) for of_edit in rows)])
    lengths = [len(of_edit.keys) for of_edit in rows]
    found["memory.rows"] = torch.tensor(lengths, dtype=torch.int32, device=banks.background.device)
    return {**found, "memory.background": banks.background}


def _grown(tensor: Tensor, length: int, fill: float | None = None) -> Tensor:
    grown = tensor.new_empty((length, *tensor.shape[1:]))
    grown[: len(tensor)] = tensor
    if fill is not None:
        grown[len(tensor) :] = fill
    return grown
