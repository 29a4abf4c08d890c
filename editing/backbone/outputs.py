"""What one module of a model puts out for rows of tokens; the layers above it are not run."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .decoder import Decoder
from .frozen import length_groups, padded_ids, pass_tokens

_TOKENS = 1024
"""Padded tokens in one pass on a CPU."""


class _Reached(Exception):
    """The module has put out what was asked for."""


@torch.no_grad()
def outputs_of(decoder: Decoder, module: nn.Module, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """`[tokens, width]` of each row of token ids, of any lengths."""
    found: list[Tensor | None] = [None] * len(rows)
    taken: list[Tensor] = []

    def take(_module: nn.Module, _args: tuple[Tensor, ...], out: Tensor) -> None:
        taken[:] = [out]
        raise _Reached

    handle = module.register_forward_hook(take)
    try:
        for group in length_groups([len(row) for row in rows], pass_tokens(decoder.device(0), _TOKENS)):
            ids = padded_ids([rows[i] for i in group], decoder.device(0))
            mask = padded_ids([[1] * len(rows[i]) for i in group], decoder.device(0))
            with contextlib.suppress(_Reached):
                decoder.body(input_ids=ids, attention_mask=mask, use_cache=False)
            out = taken[0].view(*ids.shape, -1)
            for place, i in enumerate(group):
                found[i] = out[place, : len(rows[i])].clone()
    finally:
        handle.remove()
    return [part for part in found if part is not None]
