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
from ..frozen import Features, Row, frozen_features
from ..mask_router import MaskRouter
from ..memory import SharedMatrix
from ..prompts import PromptFormat
from .frame import Method, Written
from .steps import EditRows, Progress


class Memoir(Method):
    """SGD on the masked columns, in its exact Gram form.

    Within an edit the masked inputs X `[tokens, D]` never change, so every SGD step is a change of rank `tokens`:
    with K = X X^T, G = dLoss/d(output), output of the memory = alpha X W0 - K H, the step is
    alpha <- (1 - lr wd) alpha, H <- (1 - lr wd) H + lr c G, where c clips the gradient's norm sqrt(<G G^T, K>).
    At the end W <- alpha W0 - X^T H. Nothing of the matrix's size is touched before that. A batch of edits is joint
    SGD on the shared matrix, each edit clipped and stopped alone; a batch of one is the published algorithm.
    """

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
        features = frozen_features(self.decoder, self.layer, [row.tokens for row in rows])
        alone = range(0, len(rows), len(contexts))
        masks = self.router.mask(torch.stack([self.pooled(features[i].inputs, rows[i].prompt) for i in alone]))
        written = self._solve(rows, features, self.router.unpack(masks))
        self.router.add(masks)
        self.memory.masks = self.router.bank
        return written

    def learn_background(self) -> None:
        background = self.prompt_features(self.layer, background_prompts())
        pooled = torch.stack([prompt.pooled for prompt in background])
        self.router.set_background(pooled, self.config.background_prompts)

    def _solve(self, rows: list[Row], features: list[Features], active: Tensor) -> list[Written]:
        config = self.config
        starts = [0 if config.scope == "full" else len(row.prompt) - 1 for row in rows]
        edits = EditRows(self.decoder, self.layer, rows, features, starts, len(rows) // len(active))
        x = edits.inputs.float() * active[edits.owner]
        gram = x @ x.T
        start = x @ self.memory.weight
        steps_sum = torch.zeros_like(start)
        keep = 1.0 if config.decay == "none" else 1 - config.learning_rate * config.weight_decay
        alpha = 1.0
        progress = Progress(edits.edits, config.stop_loss, config.stop_change, self.device)
        for _ in range(config.steps):
            loss, gradient = edits.loss_and_gradient(alpha * start - gram @ steps_sum)
            if not progress.goes_on(loss):
                break
            norm = _gradient_norms(gradient, gram, edits.owner, edits.edits)
            clip = (config.clip_norm / (norm + 1e-6)).clamp(max=1.0) * progress.running
            alpha *= keep
            steps_sum = keep * steps_sum + config.learning_rate * clip[edits.owner, None] * gradient
        if config.decay == "active":
            self.memory.weight[active.any(0)] *= alpha
        else:
            self.memory.weight *= alpha
        self.memory.weight -= x.T @ steps_sum
        return [Written(*pair) for pair in zip(progress.loss.tolist(), progress.steps.tolist())]

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


def _gradient_norms(gradient: Tensor, gram: Tensor, owner: Tensor, edits: int) -> Tensor:
    """Norm of each edit's gradient by the matrix, `||X_e^T G_e||`, from Gram matrices alone."""
    norms = []
    for edit in range(edits):
        tokens = (owner == edit).nonzero()[:, 0]
        mine = gradient[tokens]
        norms.append(((mine @ mine.T) * gram[tokens][:, tokens]).sum().clamp(min=0).sqrt())
    return torch.stack(norms)
