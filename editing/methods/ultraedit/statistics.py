"""The running mean and deviation of UltraEdit's keys and gradients."""

from __future__ import annotations

import torch
from torch import Tensor


class RunningStatistics:
    """Over rows `[n, width]` that come in microbatches; as published, each one's spread counts n times its variance.

    That is n / (n - 1) of its sum of squares: what comes out depends a little on how rows are cut into microbatches.
    One of a single row has no variance: there it is 0, where the published code goes on with no numbers.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float32, device=device)
        self.spread = torch.zeros(width, dtype=torch.float32, device=device)

    def copy(self) -> RunningStatistics:
        other = RunningStatistics(len(self.mean), self.mean.device)
        other.count, other.mean, other.spread = self.count, self.mean.clone(), self.spread.clone()
        return other

    def take(self, rows: Tensor) -> None:
        """Take in one microbatch, of one module."""
        if not len(rows):
            return
        number, before = len(rows), self.count
        apart = rows.mean(0) - self.mean
        self.count += number
        variance = rows.var(0) if number > 1 else torch.zeros_like(apart)
        self.spread += number * variance + before * number / self.count * apart**2
        self.mean += number * apart / self.count

    def normalised(self, rows: Tensor) -> Tensor:
        deviation = (self.spread / max(1, self.count - 1)).sqrt()
        return (rows - self.mean) / (deviation + torch.finfo(torch.float32).eps)
