"""Low-rank adapters beside linear maps, of which every edit has one, alone or with others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from ...kernels import ops
from ..backbone.hooked import hooked
from ..views import Viewed


class AdapterPart(NamedTuple):
    """The adapters of one map: down fp32 `[blocks, rank, D]`, up fp32 `[blocks, rank, d]`, block_of int32 `[edits]`."""

    down: Tensor
    up: Tensor
    block_of: Tensor

    def read_(self, out: Tensor, x: Tensor, route: Tensor, first: Tensor) -> None:
        """Add `up^T down x` of the routed edits' blocks to `out` `[tokens, d]`, in place; others keep their bits."""
        ops.adapter_linear_(out, x, self.down, self.up, self.block_of, route)


class LowRankAdapters(Viewed):
    """Blocks of adapters, a block one at each map; `shapes`: input and output width of each map by its name."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], rank: int, devices: Mapping[str, torch.device]) -> None:
        super().__init__()
        self.rank = rank
        self.shapes = dict(shapes)
        self.blocks = 0
        self.size = 0
        self._down = {
            s: torch.zeros(8, rank, w, dtype=torch.float32, device=devices[s]) for s, (w, _) in shapes.items()
        }
        self._up = {s: torch.zeros(8, rank, w, dtype=torch.float32, device=devices[s]) for s, (_, w) in shapes.items()}
        self._block_of = {site: torch.zeros(64, dtype=torch.int32, device=device) for site, device in devices.items()}

    def append(self, pairs: Mapping[str, tuple[Tensor, Tensor]], edits: int) -> None:
        """Store one more block, down `[rank, D]` and up `[rank, d]` of each map, that so many new edits share."""
        for site, (down, up) in pairs.items():
            if self.blocks == len(self._down[site]):
                for bank in (self._down, self._up):
                    bank[site] = torch.cat([bank[site], torch.zeros_like(bank[site])])
            self._down[site][self.blocks] = down.to(self._down[site])
            self._up[site][self.blocks] = up.to(self._up[site])
            while self.size + edits > len(self._block_of[site]):
                self._block_of[site] = torch.cat([self._block_of[site], torch.zeros_like(self._block_of[site])])
            self._block_of[site][self.size : self.size + edits] = self.blocks
        self.blocks += 1
        self.size += edits

    def part(self, site: str) -> AdapterPart:
        blocks = slice(0, max(1, self.blocks))
        return AdapterPart(self._down[site][blocks], self._up[site][blocks], self._block_of[site][: self.size])

    def read_(self, out: Tensor, x: Tensor, route: Tensor, first: Tensor) -> None:
        raise NotImplementedError("read a part of it: it acts at several places")

    def view(self) -> Self:
        view = super().view()
        view._down, view._up, view._block_of = dict(self._down), dict(self._up), dict(self._block_of)
        return view

    def reset(self) -> None:
        """Back to no edits; a view keeps what it reads."""
        if self._parted():
            for bank in (self._down, self._up, self._block_of):
                for site, tensor in bank.items():
                    bank[site] = torch.zeros_like(tensor)
        self.blocks = self.size = 0

    def norms(self) -> dict[str, float]:
        squares = torch.zeros(max(1, self.blocks), dtype=torch.float64, device="cpu")
        for site in self.shapes:
            down, up, _ = self.part(site)
            # |up^T down|^2 = <down down^T, up up^T>
            squares += ((down @ down.mT) * (up @ up.mT)).sum((1, 2)).double().cpu()
        sizes = sum(self.rank * sum(shape) for shape in self.shapes.values())
        return {
            "norm": float(squares.sum().sqrt()),
            "largest_block": float(squares.max().sqrt()),
            "bytes": 4 * self.blocks * sizes,
        }

    def state(self) -> dict[str, Tensor]:
        found = {}
        for site in self.shapes:
            found[f"memory.{site}.down"] = self._down[site][: self.blocks].clone()
            found[f"memory.{site}.up"] = self._up[site][: self.blocks].clone()
            found["memory.block_of"] = self._block_of[site][: self.size].clone()
        return found


@contextmanager
def adapted(modules: Mapping[str, nn.Module], pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Within: every pass through these maps is with one adapter each, and gradients go through it."""

    def add(site: str, x: Tensor, out: Tensor) -> Tensor:
        down, up = pairs[site]
        return out + ((x.float() @ down.T) @ up).to(out.dtype)

    with hooked(modules, add):
        yield
