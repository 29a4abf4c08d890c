"""What a model writes to requests, greedily, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .frozen import length_groups, padded_ids, pass_tokens
from .greedy import greedy

_TOKENS = 2048
"""Padded tokens of prompts in one call on a CPU."""


@torch.no_grad()
def written(model: Any, tokenizer: Any, rows: Sequence[Sequence[int]], most: int) -> list[str]:
    """The text that the model goes on with after each tokenised prompt, up to its end or `most` tokens."""
    found = [""] * len(rows)
    device = model.get_input_embeddings().weight.device
    for group in length_groups([len(row) for row in rows], pass_tokens(device, _TOKENS)):
        ids = padded_ids([list(rows[i])[::-1] for i in group], device).flip(1)
        mask = padded_ids([[1] * len(rows[i]) for i in group], device).flip(1)
        with greedy(model, tokenizer, most) as settings:
            output = model.generate(ids, attention_mask=mask, generation_config=settings)[:, ids.shape[1] :]
        for i, row in zip(group, output):
            found[i] = tokenizer.decode(row, skip_special_tokens=True).strip()
    return found
