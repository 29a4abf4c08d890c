"""The values of edits as problems that are solved side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...backbone.frozen import Features, Row
from ...backbone.suffix import Suffix
from ...memories.row_banks import RowBanks
from .config import AssociativeConfig


class Problem:
    """The values of one edit: everything about them is fixed but the values themselves.

    The read is linear in the values, so it is a matrix: `reads` `[tokens, positions]` times values `[positions, d]` is
    what the memory adds at every token that it touches, context after context: the position's own value where tokens
    tell which that is, and as the likeness of the keys mixes them where not. What is solved for are the values in
    `scales` `[positions, 1]`. `loss`, `steps`, `held`: how solving went; `strong`: whether they have their `gain`.
    """

    def __init__(
        self, rows: Sequence[Row], features: Sequence[Features], banks: RowBanks, config: AssociativeConfig
    ) -> None:
        self.rows = rows
        self.hidden = [f.hidden for f in features]
        positions = len(rows[0].labels)
        inputs = torch.stack([banks.projected(f.inputs[-positions:].float() - banks.background) for f in features])
        self.keys = F.normalize(inputs.mean(0), dim=-1)
        reads = torch.eye(positions, dtype=inputs.dtype, device=inputs.device).repeat(len(features), 1, 1)
        if not config.routed_by_text:
            scores = config.beta * F.normalize(inputs, dim=-1) @ self.keys[1:].T
            reads[:, 1:, 1:] = scores[:, 1:].softmax(-1)
        self.reads = reads.flatten(0, 1)
        self.tokens = len(self.reads)
        # The least of the contexts: where a prompt is one token, that is its row's first, whose norm is many times any
        # other's.
        norms = torch.stack([h[-positions:].float().norm(dim=-1, keepdim=True) for h in self.hidden])
        self.norms = norms.amin(0)
        self.scales = self.norms if config.learning_rate is None else torch.ones_like(self.norms)
        self.scaled = torch.zeros(
            positions, self.hidden[0].shape[1], dtype=torch.float32, device=inputs.device, requires_grad=True
        )
        self.loss, self.steps, self.held, self.strong = math.inf, 0, False, False

    @property
    def values(self) -> Tensor:
        """fp32 `[positions, d]`."""
        return self.scales * self.scaled

    @torch.no_grad()
    def start(self, directions: Tensor, norm: float) -> None:
        """Begin along unit directions `[positions, d]`, as long as `norm` of the hidden state there."""
        self.scaled.copy_(norm * self.norms / self.scales * directions.to(self.scaled))


class SideBySide:
    """Problems whose rows pass the layers above the edited one together."""

    def __init__(self, problems: Sequence[Problem], suffix: Suffix) -> None:
        self.problems = problems
        self.suffix = suffix
        self._contexts = len(problems[0].rows)
        self._tokens = torch.tensor(
            [problem.tokens for problem in problems], dtype=torch.int64, device=suffix.hidden.device
        )

    def token_losses(self, gain: float = 1.0) -> Tensor:
        """Cross-entropy of each label, with `gain` times the values: `[problems, contexts, length]`, 0 where none."""
        delta = torch.cat([problem.reads @ problem.values for problem in self.problems])
        losses = self.suffix.losses(delta if gain == 1 else gain * delta)
        return losses.view(len(self.problems), self._contexts, -1)

    def means(self, token_losses: Tensor) -> Tensor:
        """Mean cross-entropy `[problems]` of each one's labels in all its contexts."""
        return token_losses.flatten(1).sum(1) / self._tokens

    def answered(self) -> list[bool]:
        """Whether greedy decoding of each one's prompt, in no other context, gives its labels."""
        device = self.suffix.hidden.device
        own = torch.arange(0, len(self.suffix.hidden), self._contexts, dtype=torch.int64, device=device)
        deltas = [problem.reads[: len(problem.rows[0].labels)] @ problem.values for problem in self.problems]
        return self.suffix.select(own).predicted(torch.cat(deltas)).tolist()

    def select(self, kept: Sequence[int]) -> SideBySide:
        """Some of them, by their places in ascending order."""
        if len(kept) == len(self.problems):
            return self
        rows = [i * self._contexts + c for i in kept for c in range(self._contexts)]
        suffix = self.suffix.select(torch.tensor(rows, dtype=torch.int64, device=self.suffix.hidden.device))
        return SideBySide([self.problems[i] for i in kept], suffix)
