"""ROME (arXiv 2202.05262) and R-ROME (2403.07175): at one layer, the subject's key is given the value that says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ...edits.edit import Edit
from ..record import Solved, Written
from ..weights.method import WeightMethod, down_proj
from ..weights.solving import Cholesky
from ..weights.values import OptimisedValues, ValueProblem, optimised_values
from .config import RomeConfig
from .defaults import resolved


class Rome(WeightMethod):
    """A linear map as a memory of keys and values: W k = v for the subject's key, all else moved least.

    With k* the key at the subject's last token and v* the value found for it (`values.py`), least in the norm of the
    keys' second moment C is (equation 2)

        W <- W + (v* - W k*) u^T / (k* . u),   u = C^-1 k_mean / |C^-1 k_mean|

    k_mean over the contexts; k* of the prompt alone, or k_mean too (`keys`). Nothing below the layer depends on edits.
    """

    display: ClassVar = "ROME"
    config: RomeConfig

    resolved = staticmethod(resolved)

    def solve(self, edits: Sequence[Edit]) -> list[Solved]:
        contexts = self.prepare()
        factor = self.factor(self.layer)
        memory = self.memory.copy()
        with memory.applied(self.modules):
            asked, values, found = self.found_values(edits, contexts, self.layer)
            records = []
            for edit, one, value in zip(edits, asked, values):
                records.append(self.record(edit, self.update(one, value, factor, self.layer)))
                self.add(memory, records[-1])
            held = self.answered([one.rows[0] for one in asked])
        return [Solved(Written(*how), record) for *how, record in zip(found.loss, found.steps, held, records)]

    def factor(self, layer: int) -> Cholesky | None:
        """Of the second moment of a layer's keys, where that is asked for."""
        return None if self.config.covariance == "none" else Cholesky(self.covariance(layer))

    def found_values(
        self, edits: Sequence[Edit], contexts: Sequence[str], layer: int
    ) -> tuple[list[ValueProblem], Tensor, OptimisedValues]:
        """The edits as asked at a layer, the values `[edits, d]` that its FFN is to give, and how these came."""
        asked = self.asked(edits, contexts, layer)
        with torch.no_grad():
            keys = torch.stack([one.features[0].inputs[one.lookups[0]] for one in asked])
            given = self.decoder.down_proj(layer)(keys).float()
        # The clamp and the decay are relative to what the FFN gives, not to the layer's whole output.
        asked = [one._replace(norm=value.norm()) for one, value in zip(asked, given)]
        found = optimised_values(self.decoder, layer, asked, self.config)
        return asked, given + found.delta, found

    @torch.no_grad()
    def update(self, one: ValueProblem, value: Tensor, factor: Cholesky | None, layer: int) -> dict[str, Tensor]:
        """The rank-one change, through the weights as they are: an edit before in the batch is in them."""
        module = self.decoder.down_proj(layer)
        keys = torch.stack([f.inputs[at] for f, at in zip(one.features, one.lookups)])
        mean = keys.float().mean(0)
        direction = mean if factor is None else factor.solve(mean[:, None].double())[:, 0].float()
        direction = direction / direction.norm()
        key = keys[0].float() if self.config.keys == "prompt" else mean
        now = module(key.to(keys.dtype)).float()
        left = (value - now) / (key @ direction)
        site = down_proj(layer)
        return {f"{site}.x": direction[None], f"{site}.h": left[None]}
