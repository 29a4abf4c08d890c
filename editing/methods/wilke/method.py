"""WilKE (arXiv 2402.10987): each edit at the layer whose weights it changes least."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ...edits.edit import Edit
from ...errors import CorrigendaError
from ...memories.weight_changes import WeightChanges
from ..record import Solved, Written
from ..rome.method import Rome
from ..weights.method import down_proj
from ..weights.solving import Cholesky
from ..weights.values import ValueProblem
from .config import WilkeConfig
from .defaults import resolved


class _Tried(NamedTuple):
    """A complete ROME edit at one layer: by how much of its norm the layer's weight would change."""

    share: float
    layer: int
    asked: ValueProblem
    value: Tensor
    loss: float
    steps: int


class Wilke(Rome):
    """l* = argmin_l |Delta W_l| / |W_l| over complete ROME edits at every layer l up to a ceiling; then that edit.

    The change is of rank one, |Delta W| = |left| |u|: no weight is touched while layers are tried, and what was found
    at l* is the edit itself, where published code runs ROME once more. The edits of a batch share every layer's passes.
    """

    display: ClassVar = "WilKE"
    config: WilkeConfig

    resolved = staticmethod(resolved)  # type: ignore[assignment] # of its own configuration

    def edited_layers(self) -> Sequence[int]:
        return range(self.config.first_layer, self.config.layer + 1, self.config.every)

    def solve(self, edits: Sequence[Edit]) -> list[Solved]:
        contexts = self.prepare()
        factors = {layer: self.factor(layer) for layer in self.edited_layers()}
        memory = self.memory.copy()
        with memory.applied(self.modules):
            best: list[_Tried | None] = [None] * len(edits)
            for layer in self.edited_layers():
                for e, tried in enumerate(self._try(edits, contexts, layer, factors[layer], memory)):
                    if best[e] is None or tried.share < best[e].share:
                        best[e] = tried
            records = []
            for edit, tried in zip(edits, best):
                tensors = self.update(tried.asked, tried.value, factors[tried.layer], tried.layer)
                records.append(self.record(edit, tensors, share=tried.share))
                self.add(memory, records[-1])
            held = self.answered([tried.asked.rows[0] for tried in best])
        return [Solved(Written(t.loss, t.steps, h), record) for t, h, record in zip(best, held, records)]

    def _try(
        self,
        edits: Sequence[Edit],
        contexts: Sequence[str],
        layer: int,
        factor: Cholesky | None,
        memory: WeightChanges,
    ) -> list[_Tried]:
        asked, values, found = self.found_values(edits, contexts, layer)
        with torch.no_grad():
            weight = self.decoder.down_proj(layer).weight
            if not weight.is_floating_point() or weight.shape != (self.out_width, self.width):
                raise CorrigendaError(
                    "This model's weights are quantised: WilKE compares a change with a weight's norm."
                )
            norm = float((weight.float() + memory.matrices[down_proj(layer)].T).norm())
        tried = []
        for one, value, loss, steps in zip(asked, values, found.loss, found.steps):
            site = down_proj(layer)
            tensors = self.update(one, value, factor, layer)
            change = float(tensors[f"{site}.x"].norm() * tensors[f"{site}.h"].norm())
            tried.append(_Tried(change / norm, layer, one, value, loss, steps))
        return tried
