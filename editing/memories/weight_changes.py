"""Changes of weights kept apart from them: W = W0 + sum of low-rank products, at any linear maps of a model."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from ...kernels import ops
from ..backbone.hooked import hooked
from ..views import Viewed


class WeightChange(NamedTuple):
    """The change of one linear map: `matrix` fp32 `[D, d]`, transposed; read at every token that has a route."""

    matrix: Tensor
    everything: Tensor

    def read_(self, out: Tensor, x: Tensor, route: Tensor, first: Tensor) -> None:
        """Add `x` `[tokens, D]` times the matrix to `out` `[tokens, d]`, in place, where `route` is not -1."""
        ops.masked_linear_(out, x, self.matrix, self.everything, route.clamp(max=0))


class WeightChanges(Viewed):
    """What edits add to the weights of some linear maps, by the maps' names; always the sum of all edits.

    shapes: input and output width of each map
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], devices: Mapping[str, torch.device]) -> None:
        super().__init__()
        self.matrices = {
            name: torch.zeros(*shape, dtype=torch.float32, device=devices[name]) for name, shape in shapes.items()
        }
        self._everything = {name: _all_columns(m.shape[0], m.device) for name, m in self.matrices.items()}

    def part(self, site: str) -> WeightChange:
        return WeightChange(self.matrices[site], self._everything[site])

    def read_(self, out: Tensor, x: Tensor, route: Tensor, first: Tensor) -> None:
        raise NotImplementedError("read a part of it: it acts at several places")

    def view(self) -> Self:
        view = super().view()
        view.matrices = dict(self.matrices)
        return view

    def copy(self) -> Self:
        """Changes of its own, to try edits on."""
        other = copy.copy(self)
        other.matrices = {name: matrix.clone() for name, matrix in self.matrices.items()}
        other._views = weakref.WeakSet()
        return other

    def add(self, site: str, x: Tensor, h: Tensor) -> None:
        """Add `x^T h`, of `x` `[rank, D]` and `h` `[rank, d]`, to a map's change."""
        matrix = self.writable(site)
        matrix.addmm_(x.to(matrix).T, h.to(matrix))

    def writable(self, site: str) -> Tensor:
        """A map's change, to be written in place: its own copy where a view still reads the old one."""
        if self._parted():
            self.matrices = {name: matrix.clone() for name, matrix in self.matrices.items()}
        return self.matrices[site]

    def reset(self) -> None:
        """Back to no edits."""
        for name in self.matrices:
            self.writable(name).zero_()

    @contextmanager
    def applied(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """Within: every pass through these linear maps is with the changes, and gradients go through them.

        For writing: what is solved for next stands on what was written before. Later writes show at once.
        """

        def add(name: str, x: Tensor, out: Tensor) -> Tensor:
            return out + (x.to(torch.float32) @ self.matrices[name]).to(out.dtype)

        with hooked(modules, add):
            yield

    def norms(self) -> dict[str, float]:
        norms = torch.stack([matrix.norm().cpu() for matrix in self.matrices.values()])
        return {"norm": float(norms.norm()), "largest_matrix": float(norms.max())}

    def state(self) -> dict[str, Tensor]:
        return {f"memory.{name}": matrix for name, matrix in self.matrices.items()}


def _all_columns(width: int, device: torch.device) -> Tensor:
    """int32 `[1, ceil(width / 32)]`: a mask of every column."""
    mask = torch.full((1, (width + 31) // 32), -1, dtype=torch.int32, device=device)
    if width % 32:
        mask[0, -1] = (1 << width % 32) - 1
    return mask
