"""FT-M: Adam on one layer's weight, on the target's tokens, as EasyEdit has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...backbone.decoder import Decoder
from ...backbone.frozen import Row
from ...backbone.suffix import suffix_of
from ...edits.edit import Edit
from ...memories.weight_changes import WeightChanges
from ..defaults import edited_layer
from ..record import Record, Solved, Written
from ..weights.defaults import filled
from ..weights.method import WeightMethod, down_proj
from .config import FtmConfig

_DEPTH = 21.5 / 32


class FtM(WeightMethod):
    """Within an edit the layer's inputs never change: its passes are of the layers above, and W's gradient is X^T G.

    A record is the change of the whole weight, "delta" `[D, d]`, or its best factors x and h of `record_rank`.
    """

    record_shapes: ClassVar = {"delta": ("D", "d")}
    display: ClassVar = "FT-M"
    config: FtmConfig

    @staticmethod
    def resolved(config: FtmConfig, decoder: Decoder) -> FtmConfig:
        """As published: layer 21 of 32."""
        found = filled(config, decoder, {"learning_rate": 5e-4}, {})
        found.layer = edited_layer(found.layer, _DEPTH, decoder)
        return found

    def solve(self, edits: Sequence[Edit]) -> list[Solved]:
        rows = [self.rows(edit, [""])[0] for edit in edits]
        memory = self.memory.copy()
        solved: list[Any] = []
        with memory.applied(self.modules):
            for edit, row in zip(edits, rows):
                delta, loss, steps = self._descend(row, memory)
                record = self.record(edit, self._kept(delta))
                self.add(memory, record)
                solved.append((loss, steps, record))
            held = self.answered(rows)
        return [Solved(Written(loss, steps, h), record) for (loss, steps, record), h in zip(solved, held)]

    def _descend(self, row: Row, memory: WeightChanges) -> tuple[Tensor, float, int]:
        """The change `[D, d]` that one edit adds, its last loss and its steps."""
        config = self.config
        before = memory.matrices[down_proj(self.layer)]
        (features,) = self.features_now(self.layer, [row.tokens])
        suffix = suffix_of(self.decoder, self.layer, [features.hidden], [row], [0])
        x = features.inputs.float()
        delta = torch.zeros_like(before, requires_grad=True)
        adam = torch.optim.Adam([delta], lr=config.learning_rate)
        loss, steps = torch.inf, 0
        for _ in range(config.steps):
            found = suffix.losses(x @ delta).sum() / len(row.labels)
            loss = float(found.detach())
            if loss < config.stop_loss:
                break
            adam.zero_grad()
            found.backward()
            adam.step()
            steps += 1
            if config.norm_constraint is not None:
                with torch.no_grad():
                    most = config.norm_constraint
                    delta.copy_((before + delta).clamp(-most, most) - before)
        return delta.detach(), loss, steps

    def _kept(self, delta: Tensor) -> dict[str, Tensor]:
        """A record's tensors."""
        site, rank = down_proj(self.layer), self.config.record_rank
        if rank is None:
            return {f"{site}.delta": delta}
        left, singular, right = torch.linalg.svd(delta, full_matrices=False)
        root = singular[:rank].sqrt()
        return {f"{site}.x": (left[:, :rank] * root).T.contiguous(), f"{site}.h": root[:, None] * right[:rank]}

    def add(self, memory: WeightChanges, record: Record) -> None:
        site = down_proj(self.layer)
        if f"{site}.delta" in record.tensors:
            matrix = memory.writable(site)
            matrix += record.tensors[f"{site}.delta"].to(matrix)
        else:
            super().add(memory, record)

    @classmethod
    def shapes_of(cls, own: Mapping[str, Tensor]) -> Mapping[str, tuple[str, ...]]:
        return cls.record_shapes if "delta" in own else WeightMethod.record_shapes
