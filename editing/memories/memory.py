"""What is asked of a memory: the residual beside a down-projection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

import torch
from torch import Tensor


class Reader(Protocol):
    """What a layer asks of a memory, or of the part of it that acts there."""

    def read_(self, out: Tensor, x: Tensor, route: Tensor, first: Tensor) -> None:
        """Add to `out` `[tokens, d]`, in place, what the routed edits say of `x` `[tokens, D]`.

        route int32 `[tokens]`: the edit to read, -1 for none; first bool `[tokens]`: the last prompt token.
        """


class RowReader(Reader, Protocol):
    """What a layer asks besides of a memory whose edits have rows (`Method.follows_answers`)."""

    def read_rows_(self, out: Tensor, place: Tensor, row: Tensor) -> None:
        """Add to `out` `[tokens, d]`, in place, the row of an edit at each token; int32 `[tokens]`, -1 for none."""


class Memory(Reader, Protocol):
    """What a model, a reader and a report ask of a memory."""

    def view(self) -> Self:
        """The memory as it is now, for a reader: later writes to this one do not show there."""

    def reset(self) -> None:
        """Back to no edits."""

    def norms(self) -> dict[str, float]:
        """How much it holds: its norm and that of its largest part, for `corrigenda report`."""

    def state(self) -> dict[str, Tensor]:
        """Every tensor that its answers depend on."""


class SpreadMemory(Memory, Protocol):
    """A memory that acts at several places of a model (`Method.sites`)."""

    def part(self, site: str) -> Reader:
        """What acts at the place of this name."""


def matrix_norms(matrices: Sequence[Tensor]) -> dict[str, float]:
    """The same of memories that are matrices `[D, d]`, by their rows."""
    rows = torch.cat(list(matrices)).norm(dim=1)
    used = (rows > 0).float().mean()
    return {"norm": float(rows.norm()), "rows_used": float(used), "largest_row": float(rows.max())}
