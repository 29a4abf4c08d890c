"""Random bits that depend on a seed and a position alone: the same on every device, in any order, and never stored."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.reference import pack_mask

_GOLDEN, _FIRST, _SECOND = (value - (1 << 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_ENTRIES = 1 << 22
"""Entries drawn at a time: 32 MB a temporary, where the whole of an 8B model's matrix would take 470 MB."""


def random_bits(
    seed: int, stream: int, rows: int, columns: int, rate: float, device: torch.device, below: float = 0.0
) -> Tensor:
    """int32 `[rows, ceil(columns / 32)]`: every bit is 1 with probability `rate - below`, independently of all others.

    Bit (i, j) is whether the upper half of SplitMix64's output number i * columns + j is from below * 2^32 to less than
    rate * 2^32, for the state that `seed` and `stream` (at most 2^32 each) name: ranges that share no number share no
    bit. int64 wraps around as that generator's arithmetic does.
    """
    state = ((stream << 32) ^ seed) % (1 << 64)
    signed = state - (state >> 63 << 64)  # the same bits
    start = _mixed(torch.tensor([signed], dtype=torch.int64, device="cpu"))
    bits = torch.empty(rows, (columns + 31) // 32, dtype=torch.int32, device=device)
    step = max(1, _ENTRIES // columns)
    for row in range(0, rows, step):
        count = min(step, rows - row)
        index = torch.arange(row * columns, (row + count) * columns, dtype=torch.int64, device=device)
        drawn = _shifted(_mixed(start.to(device) + (index + 1) * _GOLDEN), 32)
        chosen = (drawn >= int(below * 2**32)) & (drawn < int(rate * 2**32))
        bits[row : row + count] = pack_mask(chosen.view(count, columns))
    return bits


def _shifted(state: Tensor, places: int) -> Tensor:
    """Shift right, filling with zeros."""
    return (state >> places) & ((1 << (64 - places)) - 1)


def _mixed(state: Tensor) -> Tensor:
    """SplitMix64's output function (Steele, Lea and Flood, 2014)."""
    state = (state ^ _shifted(state, 30)) * _FIRST
    state = (state ^ _shifted(state, 27)) * _SECOND
    return state ^ _shifted(state, 31)
