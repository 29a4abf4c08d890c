"""MEMIT (arXiv 2210.07229): a batch of keys and values, written into several layers by regularised least squares."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...backbone.decoder import Decoder
from ...backbone.frozen import Row
from ...edits.edit import Edit
from ...edits.prompts import PromptFormat
from ...memories.weight_changes import WeightChanges
from ..record import Solved, Written
from ..weights.method import WeightMethod, down_proj
from ..weights.solving import Cholesky
from ..weights.values import ValueProblem, optimised_values
from .config import MemitConfig
from .defaults import resolved


class Spreading(WeightMethod):
    """A batch whose values, found at the last of several layers, are reached by small changes of all of them.

    With z the hidden states that are wanted at the lookups after the last layer, and n layers, in ascending order i:

        K = the layer's keys now,  R = (z - hidden state after the last layer now) / (n - i),  W <- W + R A^T

    where A `[D, edits]` is the method's own (`directions`). Each layer sees what those below it changed.
    """

    config: Any

    def edited_layers(self) -> Sequence[int]:
        return range(self.config.first_layer, self.config.layer + 1)

    def directions(self, layer: int, keys: Tensor) -> Tensor:
        """fp64 `[D, edits]`: by what a change of the weights turns each edit's key into its residual."""
        raise NotImplementedError

    def get_ready(self) -> None:
        """Find what `directions` needs of the base model, before any pass through changed weights."""
        raise NotImplementedError

    def solve(self, edits: Sequence[Edit]) -> list[Solved]:
        contexts = self.prepare()
        self.get_ready()
        memory = self.memory.copy()
        with self.through(memory):
            asked = self.asked(edits, contexts, self.layer)
            found = optimised_values(self.decoder, self.layer, asked, self.config)
            wanted = self._hidden(asked, [one.features[0].hidden for one in asked]) + found.delta
            tensors = self._spread(memory, asked, wanted)
            held = self.answered([one.rows[0] for one in asked])
        records = [self.record(edit, of_edit) for edit, of_edit in zip(edits, tensors)]
        return [Solved(Written(*how), record) for *how, record in zip(found.loss, found.steps, held, records)]

    def through(self, memory: WeightChanges) -> contextlib.AbstractContextManager[None]:
        """Within: passes are through what the memory changes."""
        return memory.applied(self.modules)

    def written(self, site: str) -> None:
        """Told of each site when a batch has been written into it."""

    @torch.no_grad()
    def _spread(self, memory: WeightChanges, asked: Sequence[ValueProblem], wanted: Tensor) -> list[dict[str, Tensor]]:
        """The change of every layer, written into `memory` as it is found; each edit's tensors."""
        tensors: list[dict[str, Tensor]] = [{} for _ in asked]
        layers = self.edited_layers()
        for i, layer in enumerate(layers):
            keys = self.mean_keys(asked, layer)
            prompts = [one.rows[0].prompt for one in asked]
            now = self._hidden(asked, [f.hidden for f in self.features_now(self.layer, prompts)])
            residual = (wanted - now) / (len(layers) - i)
            x, site = self.directions(layer, keys.T.double()).T.float(), down_proj(layer)
            memory.add(site, x, residual)
            self.written(site)
            for own, row, of_edit in zip(tensors, x, residual):
                own |= {f"{site}.x": row[None], f"{site}.h": of_edit[None]}
        return tensors

    def _hidden(self, asked: Sequence[ValueProblem], hidden: Sequence[Tensor]) -> Tensor:
        """fp32 `[edits, d]`: at the lookup of each prompt that stands alone."""
        return torch.stack([h[one.lookups[0]] for one, h in zip(asked, hidden)]).float()

    def key_row(self, row: Row, lookup: int) -> tuple[int, ...]:
        """What is passed of a row for its key: later tokens do not change it."""
        return row.prompt[: lookup + 1]

    @torch.no_grad()
    def mean_keys(self, asked: Sequence[ValueProblem], layer: int) -> Tensor:
        """fp32 `[edits, D]`: each edit's key now, half of the prompt's alone and half of the mean after contexts."""
        rows = [self.key_row(row, at) for one in asked for row, at in zip(one.rows, one.lookups)]
        places = [at for one in asked for at in one.lookups]
        keys = torch.stack([f.inputs[at].float() for f, at in zip(self.features_now(layer, rows), places)])
        keys = keys.view(len(asked), -1, keys.shape[1])
        return keys[:, 0] if keys.shape[1] == 1 else (keys[:, 0] + keys[:, 1:].mean(1)) / 2


class Regularised(Spreading):
    """The second moment of each layer's keys, lambda C, factored once."""

    def __init__(self, decoder: Decoder, prompts: PromptFormat, config: Any) -> None:
        super().__init__(decoder, prompts, config)
        self.factors: dict[int, Cholesky] = {}

    def get_ready(self) -> None:
        for layer in self.edited_layers():
            if layer not in self.factors:
                self.factors[layer] = Cholesky(self.config.covariance_weight * self.covariance(layer))


class Memit(Regularised):
    """A = (lambda C + K K^T)^-1 K, for C the second moment of the layer's keys (equation 14).

    By the push-through identity A = B (I + K^T B)^-1 with B = (lambda C)^-1 K: C is factored once, a batch costs two
    triangular solves for its keys, not a factorisation as wide as the layer.
    """

    display: ClassVar = "MEMIT"
    config: MemitConfig

    resolved = staticmethod(resolved)

    def directions(self, layer: int, keys: Tensor) -> Tensor:
        return self.factors[layer].solve_beside(keys)
