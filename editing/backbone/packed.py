"""Whole prompts at one layer, packed one after another: what feature routers learn from and decide by."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..edits.prompts import PromptFormat
from ..errors import CorrigendaError
from .decoder import Decoder
from .frozen import frozen_features


class PackedPrompts(NamedTuple):
    """Prompts at the down-projection of a layer.

    inputs   `[tokens, D]`, in the model's dtype
    offsets  int32 `[prompts + 1]`: where each begins, and the end
    weight   fp32 `[tokens]`: 1 for the tokens that count for a fingerprint, 0 for others
    """

    inputs: Tensor
    offsets: Tensor
    weight: Tensor

    @classmethod
    def of(cls, decoder: Decoder, layer: int, form: PromptFormat, prompts: Sequence[str]) -> PackedPrompts:
        """Prompts as they would be asked."""
        rows = [form.encode(form.wrap(prompt)) for prompt in prompts]
        inputs = torch.cat([features.inputs for features in frozen_features(decoder, layer, rows)])
        ends = list(itertools.accumulate(map(len, rows), initial=0))
        weight = torch.zeros(len(inputs), dtype=torch.float32, device=inputs.device)
        for row, begin in zip(rows, ends):
            start, end = form.user_tokens(row)
            weight[begin + start : begin + end] = 1
        return cls(inputs, torch.tensor(ends, dtype=torch.int32, device=inputs.device), weight)

    @classmethod
    def none(cls, width: int) -> PackedPrompts:
        """No prompts."""
        return cls(
            torch.zeros(0, width, dtype=torch.float32, device="cpu"),
            torch.zeros(1, dtype=torch.int32, device="cpu"),
            torch.zeros(0, dtype=torch.float32, device="cpu"),
        )

    def tensors(self, name: str) -> dict[str, Tensor]:
        """What `from_tensors` takes: all of them with rows, so that a reader can check their widths."""
        return {name: self.inputs, f"{name}.offsets": self.offsets[:, None], f"{name}.weight": self.weight[:, None]}

    @classmethod
    def from_tensors(cls, name: str, tensors: dict[str, Tensor]) -> PackedPrompts:
        """Take over what `tensors` gave; raise where it is not whole, or of no prompt."""
        inputs, offsets, weight = tensors[name], tensors[f"{name}.offsets"], tensors[f"{name}.weight"]
        # In int64: differences of int32 wrap around, and offsets far outside would pass for ascending ones.
        ends = offsets.flatten().long()
        whole = len(ends) > 1 and ends[0] == 0 and ends[-1] == len(inputs) == len(weight)
        if not whole or bool((ends < 0).any()) or bool((ends.diff() < 1).any()):
            raise CorrigendaError("its packed prompts are not whole")
        return cls(inputs, ends.int(), weight.flatten().float())
