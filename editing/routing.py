"""What a router decides: which stored edit, if any, a prompt is about."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Decision(NamedTuple):
    """The routers' answer for a batch of prompts, one entry each.

    route      int32: the edit to apply, -1 for none
    nearest    int32: the best-matching edit, applied or not; -1 where none is stored
    score      float32: how well it matches, 0 to 1
    runner_up  float32: the same of the second best
    """

    route: Tensor
    nearest: Tensor
    score: Tensor
    runner_up: Tensor


def decide(nearest: Tensor, score: Tensor, runner_up: Tensor, threshold: float, rival_weight: float) -> Decision:
    """Apply the best match where it stands out: score less a share of the runner-up's reaches the threshold."""
    applies = (nearest >= 0) & (score - rival_weight * runner_up >= threshold)
    return Decision(torch.where(applies, nearest, -1).int(), nearest, score, runner_up)


def calibrated(background: Tensor, floor: float, quantile: float = 0.995, margin: float = 0.02) -> float:
    """A threshold that leaves background prompts unrouted: `margin` above their `quantile`, at least `floor`.

    background: what `decide` compares with the threshold, for prompts that no edit is about. The quantile, not the
    maximum: among hundreds of background prompts one or two may really be about a stored edit.
    """
    if background.numel() == 0:
        return floor
    return max(floor, float(torch.quantile(background.float(), quantile)) + margin)
