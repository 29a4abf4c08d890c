"""MEMOIR (arXiv 2506.07899): a shared residual matrix; an edit writes only the columns of its own mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..background import background_prompts
from ..config import MemoirConfig
from ..decoder import Decoder
from ..edits import Edit
from ..errors import CorrigendaError
from ..frozen import Features, Row, Suffix, frozen_features, length_groups, pass_tokens
from ..mask_router import MaskRouter
from ..memory import SharedMatrix
from ..prompts import PromptFormat
from .frame import Method, Written

_STEP_TOKENS = 192
"""Padded tokens in one pass on a CPU: splits an edit's 11 rows by length, so short contexts do not pay for long."""


class Memoir(Method):
    """SGD on the masked columns, in its exact Gram form.

    Within an edit the masked inputs X `[tokens, D]` never change, so every SGD step is a change of rank `tokens`:
    with K = X X^T, G = dLoss/d(output), output of the memory = alpha X W0 - K H, the step is
    alpha <- (1 - lr wd) alpha, H <- (1 - lr wd) H + lr c G, where c clips the gradient's norm sqrt(<G G^T, K>).
    At the end W <- alpha W0 - X^T H. Nothing of the matrix's size is touched before that. A batch of edits is joint
    SGD on the shared matrix, each edit clipped and stopped alone; a batch of one is the published algorithm.
    """

    config_class = MemoirConfig
    config: MemoirConfig
    memory: SharedMatrix
    router: MaskRouter

    def __init__(self, decoder: Decoder, prompts: PromptFormat, config: MemoirConfig) -> None:
        super().__init__(decoder, prompts, config)
        self.memory = SharedMatrix(self.width, self.out_width, self.device)
        self.router = MaskRouter(
            self.width, config.top_k, seed=config.seed, threshold=config.threshold, device=self.device
        )

    def write(self, edits: Sequence[Edit]) -> list[Written]:
        """Write a batch of edits into the matrix."""
        contexts = self.prepare()
        rows = [row for edit in edits for row in self.rows(edit, contexts)]
        owner = torch.arange(len(edits)).repeat_interleave(len(contexts))
        features = frozen_features(self.decoder, self.layer, [row.tokens for row in rows])
        alone = range(0, len(rows), len(contexts))
        masks = self.router.mask(torch.stack([self.pooled(features[i].inputs, rows[i].prompt) for i in alone]))
        written = self._solve(rows, features, owner, self.router.unpack(masks))
        self.router.add(masks)
        self.memory.masks = self.router.bank
        return written

    def learn_background(self) -> None:
        background = self.prompt_features(self.layer, background_prompts())
        pooled = torch.stack([prompt.pooled for prompt in background])
        self.router.set_background(pooled, self.config.background_prompts)

    def _solve(self, rows: list[Row], features: list[Features], owner: Tensor, active: Tensor) -> list[Written]:
        config = self.config
        starts = [0 if config.scope == "full" else len(row.prompt) - 1 for row in rows]
        groups = list(length_groups([len(row.tokens) for row in rows], pass_tokens(self.device, _STEP_TOKENS)))
        order = [i for group in groups for i in group]
        suffixes = [
            Suffix(
                self.decoder,
                self.layer,
                [features[i].hidden for i in group],
                [rows[i] for i in group],
                [starts[i] for i in group],
            )
            for group in groups
        ]
        inputs = [features[i].inputs[starts[i] :].float() * active[owner[i]] for i in order]
        sizes = [sum(len(features[i].inputs) - starts[i] for i in group) for group in groups]
        token_owner = torch.cat([owner[i].expand(len(x)) for i, x in zip(order, inputs)]).to(self.device)
        # The published loss divides by one more than the target's tokens, and is a mean over an edit's rows.
        scale = torch.tensor([1 / ((len(rows[i].labels) + 1) * len(self._contexts)) for i in order])
        scale, row_owner = scale.to(self.device), owner[order].to(self.device)
        edits = len(active)

        x = torch.cat(inputs)
        gram = x @ x.T
        start = x @ self.memory.weight
        steps_sum = torch.zeros_like(start)
        keep = 1.0 if config.decay == "none" else 1 - config.learning_rate * config.weight_decay
        alpha = 1.0
        previous = torch.full((edits,), torch.inf, device=self.device)
        running = torch.ones(edits, dtype=torch.bool, device=self.device)
        steps = torch.zeros(edits, dtype=torch.long, device=self.device)
        final = previous.clone()
        for _ in range(config.steps):
            delta = alpha * start - gram @ steps_sum
            loss, gradient = _loss_and_gradient(suffixes, delta, sizes, scale, row_owner, edits)
            final = torch.where(running, loss, final)
            running &= ~(((loss - previous).abs() <= config.stop_change) & (loss <= config.stop_loss))
            if not running.any():
                break
            previous = loss
            norm = _gradient_norms(gradient, gram, token_owner, edits)
            clip = (config.clip_norm / (norm + 1e-6)).clamp(max=1.0) * running
            alpha *= keep
            steps_sum = keep * steps_sum + config.learning_rate * clip[token_owner, None] * gradient
            steps += running
        if config.decay == "active":
            self.memory.weight[active.any(0)] *= alpha
        else:
            self.memory.weight *= alpha
        self.memory.weight -= x.T @ steps_sum
        return [Written(*pair) for pair in zip(final.tolist(), steps.tolist())]

    def remove(self, edits: set[int]) -> None:
        raise CorrigendaError(
            "MEMOIR's edits share one matrix, from which a single one cannot be taken out: write the others anew, or "
            "use the associative method."
        )

    def state(self) -> dict[str, Tensor]:
        return {"memory.weight": self.memory.weight, **self.router.state()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self.has_background = bool(tensors["router.background"].any())
        self.memory.weight.copy_(tensors["memory.weight"])
        self.router.load_state(tensors)
        self.memory.masks = self.router.bank


def _loss_and_gradient(
    suffixes: list[Suffix], delta: Tensor, sizes: list[int], scale: Tensor, owner: Tensor, edits: int
) -> tuple[Tensor, Tensor]:
    """Each edit's loss `[edits]`, and the gradient of their sum by `delta` `[tokens, d]`, group after group."""
    loss = torch.zeros(edits, device=delta.device)
    gradients, row = [], 0
    for suffix, part in zip(suffixes, delta.split(sizes)):
        part = part.detach().requires_grad_()
        of_group = slice(row, row + len(suffix.hidden))
        per_row = suffix.losses(part).sum(1) * scale[of_group]
        gradients += torch.autograd.grad(per_row.sum(), part)
        loss.index_add_(0, owner[of_group], per_row.detach())
        row = of_group.stop
    return loss, torch.cat(gradients)


def _gradient_norms(gradient: Tensor, gram: Tensor, owner: Tensor, edits: int) -> Tensor:
    """Norm of each edit's gradient by the matrix, `||X_e^T G_e||`, from Gram matrices alone."""
    norms = []
    for edit in range(edits):
        tokens = (owner == edit).nonzero()[:, 0]
        mine = gradient[tokens]
        norms.append(((mine @ mine.T) * gram[tokens][:, tokens]).sum().clamp(min=0).sqrt())
    return torch.stack(norms)
