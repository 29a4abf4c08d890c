"""LoRA by PEFT: each edit's adapter, learnt beside those before it, is a term of W = W0 + sum."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from ...backbone.decoder import Decoder
from ...backbone.frozen import Row
from ...backbone.told import label_losses_of
from ...edits.edit import Edit
from ..adapters import Training, learn_adapters, target_modules
from ..defaults import edited_layer
from ..record import Solved, Written
from ..weights.defaults import filled
from ..weights.method import WeightMethod
from .config import AdapterConfig


class AdapterMethod(WeightMethod):
    """Adapters of the maps that `modules` names: x `[rank, D]` and h `[rank, d]` of a record are one site's adapter.

    The edits of a batch are learnt one after the other, each on the model with those before it.
    """

    uses_contexts = False
    config: AdapterConfig

    @staticmethod
    def resolved(config: Any, decoder: Decoder) -> Any:
        config.layer = edited_layer(config.layer, 0.9, decoder)  # where the model's weights are sampled, no more
        return filled(config, decoder, {}, {})

    def edited_modules(self) -> dict[str, nn.Module]:
        return target_modules(self.decoder, self.config.modules)

    def learnt_from(self, edits: Sequence[Edit]) -> list[list[Row]]:
        """The rows that each edit is learnt from, its own prompt and target first."""
        return [self.rows(edit, [""]) for edit in edits]

    def training(self, edit: Edit, rows: Sequence[Row]) -> Training:
        """How an edit's adapter is learnt from its rows."""
        config = self.config
        seed = zlib.crc32(f"{config.seed} {edit.prompt} {edit.target}".encode())  # whatever is written beside it
        how = config.rank, config.alpha, config.dropout, config.learning_rate, config.steps
        return Training(*how, batch_size=len(rows), seed=seed, stop_loss=config.stop_loss)

    def solve(self, edits: Sequence[Edit]) -> list[Solved]:
        self.prepare()
        memory, solved = self.memory.copy(), []
        with memory.applied(self.modules):
            for edit, rows in zip(edits, self.learnt_from(edits)):
                pairs, _, steps = learn_adapters(self.decoder, self.modules, rows, self.training(edit, rows))
                # In half precision: as published an edit takes 1.8 MB of SmolLM2 in fp32.
                tensors = {f"{site}.x": pair.down.to(torch.float16) for site, pair in pairs.items()}
                tensors |= {f"{site}.h": pair.up.to(torch.float16) for site, pair in pairs.items()}
                record = self.record(edit, tensors)
                self.add(memory, record)
                ((loss, held),) = label_losses_of(self.decoder, rows[:1])
                solved.append(Solved(Written(loss, steps, held), record))
        return solved


class Lora(AdapterMethod):
    """The cross-entropy of the target after the prompt, and nothing else."""

    display: ClassVar = "LoRA"
