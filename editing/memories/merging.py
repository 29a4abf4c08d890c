"""Several residual matrices made into one: the ways that WISE (arXiv 2405.14768, section 2.3) compares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels import ops
from ...kernels.reference import unpack_mask
from .random_bits import random_bits


def merge(kind: str, deltas: Sequence[Tensor], weights: Sequence[float], density: float, seed: int) -> Tensor:
    """One matrix of the shards `deltas` (equal shapes `[D, d]`, fp32), every one of them counting by its weight.

    ties       each shard's largest `density` share of entries; signs elected; mean of the entries that agree
    sign       the same of all entries
    magnitude  mean of each shard's largest entries
    linear     mean
    dare       mean of a random `density` share of each shard's entries, scaled up to keep the shard's sum
    dare_ties  signs elected among such entries; mean of those that agree
    slerp      shard after shard along the great circle, by its share of the weight so far
    """
    stack = torch.stack(list(deltas))
    weight = torch.tensor(weights, dtype=torch.float32, device=stack.device)
    if kind in ("dare", "dare_ties"):
        stack = torch.stack([_dropped(delta, density, seed, shard) for shard, delta in enumerate(stack)])
    if kind in ("ties", "sign", "dare_ties"):
        return ops.ties_merge(stack, weight, [density if kind == "ties" else 1.0] * len(stack))
    if kind == "magnitude":
        stack = torch.stack([ops.ties_merge(delta[None], weight.new_ones(1), [density]) for delta in stack])
    if kind == "slerp":
        return _slerp(stack, weights)
    return torch.tensordot(weight / weight.sum(), stack, dims=1)


def _dropped(delta: Tensor, density: float, seed: int, shard: int) -> Tensor:
    """A random share of the entries, scaled up (DARE, arXiv 2311.03099)."""
    rows, columns = delta.shape
    kept = unpack_mask(random_bits(seed, shard, rows, columns, density, delta.device), columns)
    return torch.where(kept, delta / density, 0.0)


def _slerp(deltas: Tensor, weights: Sequence[float]) -> Tensor:
    merged, mass = deltas[0], weights[0]
    for delta, weight in zip(deltas[1:], weights[1:]):
        mass += weight
        share = weight / mass
        cosine = torch.nn.functional.cosine_similarity(merged.flatten(), delta.flatten(), dim=0)
        angle = cosine.clamp(-1, 1).acos()
        sine = angle.sin()
        # Nearly parallel shards: the circle is a line, and the sines' ratio loses its digits.
        near = sine < 1e-4
        sine = torch.where(near, 1.0, sine)
        own = torch.where(near, 1 - share, ((1 - share) * angle).sin() / sine)
        new = torch.where(near, share, (share * angle).sin() / sine)
        merged = own * merged + new * delta
    return merged
