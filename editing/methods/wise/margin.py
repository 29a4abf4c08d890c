"""WISE's margin loss: a side memory is to move the layer's output far on its edits, and hardly on anything else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..steps import EditRows
from .config import WiseConfig


class Margin:
    """The margin loss of a batch: each edit's own, and that of the replayed ones shared out among them.

    La = relu(D_irrelevant - alpha) + relu(beta - D_edit) + relu(gamma - (D_edit - D_irrelevant)), each the mean over
    the rows where it is above 0; D is the mean distance of a row's tokens. Rows are the edits', then the irrelevant
    prompts of each, then the replayed ones, the last of them of the shard in use where `own`; `lengths` are those of
    all rows after the edits'.

    owner `[tokens]`: the edit that a token was taken in for; the last, for replayed ones
    """

    def __init__(self, base: Tensor, batch: EditRows, lengths: Sequence[int], own: bool, config: WiseConfig) -> None:
        device = base.device
        self.own = own
        self.base = base
        self.config = config
        self.edits = batch.edits
        self.in_edits = int(batch.row.max()) + 1
        self.irrelevant_end = self.in_edits + self.edits * config.irrelevant_prompts
        self.rows = self.in_edits + len(lengths)
        row_apart = torch.arange(self.in_edits, self.rows, dtype=torch.int64, device=device)
        row_apart = row_apart.repeat_interleave(torch.tensor(lengths, dtype=torch.int64, device=device))
        self.row = torch.cat([batch.row, row_apart])
        of_edit = (row_apart - self.in_edits) // config.irrelevant_prompts
        self.owner = torch.cat([batch.owner, of_edit.clamp(max=self.edits - 1)])
        counted = torch.ones(len(self.row), dtype=torch.float32, device=device)
        if config.distance_tokens == "prompt":
            counted[: len(batch.row)] = batch.in_prompt.float()
        self.share = counted / counted.new_zeros(self.rows).index_add_(0, self.row, counted)[self.row]

    def __call__(self, side: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss `[edits]`, gradient of the sum by `side` `[tokens, d]`, and each edit's distance as routed `[edits]`."""
        side = side.detach().requires_grad_()
        change = F.silu(self.base + side) - F.silu(self.base) if self.config.distance == "activated" else side
        of_token = torch.linalg.vector_norm(change, dim=1)
        distance = of_token.new_zeros(self.rows).index_add(0, self.row, of_token * self.share)
        edited = distance[: self.in_edits].view(self.edits, -1)
        irrelevant = distance[self.in_edits : self.irrelevant_end].view(self.edits, -1)
        alpha, beta, gamma = self.config.alpha, self.config.beta, self.config.gamma
        apart = gamma - (edited - irrelevant.mean(1, keepdim=True))
        loss = sum(map(_mean_of_positive, (irrelevant - alpha, beta - edited, apart)))
        replayed = distance[self.irrelevant_end :]
        if len(replayed):
            earlier = len(replayed) - self.own
            own, earlier = beta - replayed[earlier:], replayed[:earlier] - alpha
            loss = loss + (_mean_of_positive(own[None]) + _mean_of_positive(earlier[None])) / self.edits
        loss = self.config.margin_weight * loss
        (gradient,) = torch.autograd.grad(loss.sum(), side)
        if self.config.reduction == "max":
            counted = torch.where(self.share > 0, of_token.detach(), 0.0)
            distance = counted.new_zeros(self.rows).scatter_reduce(0, self.row, counted, "amax")
            edited = distance[: self.in_edits].view(self.edits, -1)
        return loss.detach(), gradient, edited.detach().mean(1)

    def goes_on(self, running: Tensor) -> Tensor:
        """bool `[tokens]`: whether the edit that a token was taken in for still runs."""
        replayed = self.row >= self.irrelevant_end
        return torch.where(replayed, running.any(), running[self.owner])


def _mean_of_positive(values: Tensor) -> Tensor:
    positive = values.clamp(min=0)
    return positive.sum(1) / (values > 0).sum(1).clamp(min=1)
