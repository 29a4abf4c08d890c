"""AlphaEdit (arXiv 2410.02355): MEMIT's batches, written where no other key reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ...backbone.decoder import Decoder
from ...edits.prompts import PromptFormat
from ...errors import CorrigendaError
from ...memories.weight_changes import WeightChanges
from ..memit.method import Spreading
from ..record import Record
from ..weights.method import down_proj
from ..weights.solving import ridge_columns
from ..weights.values import ValueProblem
from .config import AlphaEditConfig
from .defaults import resolved


class AlphaEdit(Spreading):
    """(P (K K^T + K_p K_p^T) + L2 I) A = P K, for P the projector on what the second moment C of keys hardly uses.

    K_p are the keys of earlier batches, as they were when their batch was written. With U `[D, m]` an orthonormal basis
    of P and B = U^T [K_p K], A is the last columns of U B (B^T B + L2 I)^-1: as published, and a solve in the number of
    keys instead of one as wide as the layer, with no accumulator of that size. A record has its edit's "key" too; an
    edit that is taken out no longer holds later ones back.
    """

    record_shapes: ClassVar = {"x": ("rank", "D"), "h": ("rank", "d"), "key": ("rank", "D")}
    display: ClassVar = "AlphaEdit"
    config: AlphaEditConfig

    resolved = staticmethod(resolved)

    def __init__(self, decoder: Decoder, prompts: PromptFormat, config: AlphaEditConfig) -> None:
        super().__init__(decoder, prompts, config)
        self._keys: dict[int, list[Tensor]] = {layer: [] for layer in self.edited_layers()}
        self._bases: dict[int, Tensor] = {}

    def reset(self) -> None:
        super().reset()
        self._keys = {layer: [] for layer in self._keys}

    def apply(self, records: Sequence[Record]) -> None:
        super().apply(records)
        for layer, kept in self._keys.items():
            kept += [record.tensors[f"{down_proj(layer)}.key"].to(self.device) for record in records]

    def get_ready(self) -> None:
        for layer in self.edited_layers():
            if layer in self._bases:
                continue
            used, directions = torch.linalg.eigh(self.covariance(layer))
            free = used < self.config.null_threshold
            if not bool(free.any()):
                raise CorrigendaError(
                    f"Layer {layer} has no direction that its keys use less than null_threshold="
                    f"{self.config.null_threshold} (the least is {float(used[0]):.2g}): set a larger one."
                )
            self._bases[layer] = directions[:, free]

    def directions(self, layer: int, keys: Tensor) -> Tensor:
        before = self._keys[layer]
        every = torch.cat([torch.cat(before).T.double(), keys], 1) if before else keys
        return ridge_columns(self._bases[layer], every, self.config.ridge)[:, -keys.shape[1] :]

    def _spread(self, memory: WeightChanges, asked: Sequence[ValueProblem], wanted: Tensor) -> list[dict[str, Tensor]]:
        """And the keys as they are after the whole batch, which later ones are held back by."""
        tensors = super()._spread(memory, asked, wanted)
        for layer in self.edited_layers():
            for own, key in zip(tensors, self.mean_keys(asked, layer)):
                own[f"{down_proj(layer)}.key"] = key[None]
        return tensors
