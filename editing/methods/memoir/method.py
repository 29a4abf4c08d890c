"""MEMOIR (arXiv 2506.07899): a shared residual matrix; an edit writes only the columns of its own mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ...backbone.background import background_prompts
from ...backbone.decoder import Decoder
from ...backbone.frozen import Features, Row
from ...edits.edit import Edit
from ...edits.prompts import PromptFormat
from ...errors import CorrigendaError
from ...memories.shared_matrix import SharedMatrix
from ...routers.masks import MaskRouter
from ..method import Method
from ..record import Record, Solved, of_rank
from ..steps import EditRows, StoppingRule, descend
from .config import MemoirConfig
from .defaults import resolved


class Memoir(Method):
    """SGD on the masked columns, in its exact Gram form.

    Within an edit the masked inputs X `[tokens, D]` never change, so every SGD step is a change of rank `tokens`:
    with K = X X^T, G = dLoss/d(output), output of the memory = alpha X W0 - K H, the step is
    alpha <- (1 - lr wd) alpha, H <- (1 - lr wd) H + lr c G, where c clips the gradient's norm sqrt(<G G^T, K>).
    At the end W <- alpha W0 - X^T H. Nothing of the matrix's size is touched before that. A batch of edits is joint
    SGD on the shared matrix, each edit clipped and stopped alone; a batch of one is the published algorithm.

    The record of an edit is its (X, H), X at the columns of its mask alone, and alpha. A batch is written as: its decay
    once, then W <- W - X^T H of one edit after the other. So the memory is the recorded updates of the edits that are
    in, in the order in which they were written; an edit that was written while another was in and is out now keeps its
    update.
    """

    record_shapes: ClassVar = {"x": ("tokens", "k"), "h": ("tokens", "d")}
    keeps_unsolved = True
    config: MemoirConfig
    memory: SharedMatrix
    router: MaskRouter

    resolved = staticmethod(resolved)

    def __init__(self, decoder: Decoder, prompts: PromptFormat, config: MemoirConfig) -> None:
        super().__init__(decoder, prompts, config)
        self.memory = SharedMatrix(self.width, self.out_width, self.device)
        # A matrix from before edits were recorded one by one; it stays under those that are.
        self._inherited: Tensor | None = None
        self.router = MaskRouter(
            self.width, config.top_k, seed=config.seed, threshold=config.threshold, device=self.device
        )

    def solve(self, edits: Sequence[Edit]) -> list[Solved]:
        contexts = self.prepare()
        rows = [row for edit in edits for row in self.rows(edit, contexts)]
        features = self.features([row.tokens for row in rows])
        alone = range(0, len(rows), len(contexts))
        masks = self.router.mask(torch.stack([self.pooled(features[i].inputs, rows[i].prompt) for i in alone]))
        return self._solve(rows, features, masks)

    def apply(self, records: Sequence[Record]) -> None:
        self.make_known(records)
        self.memory.masks = self.router.bank
        if not records:
            return
        weight = self.memory.writable()
        active = self.router.unpack(torch.stack([record.fingerprint for record in records]).to(self.device)).bool()
        alpha = records[0].numbers["alpha"]
        if self.config.decay == "all":
            weight *= alpha
        elif self.config.decay == "active":
            weight[active.any(0)] *= alpha
        for mask, record in zip(active, records):
            x, h = (record.tensors[name].to(self.device).float() for name in ("x", "h"))
            weight.index_add_(0, mask.nonzero()[:, 0], x.T @ h, alpha=-1)

    def learn_background(self) -> None:
        background = self.prompt_features(self.layer, background_prompts())
        pooled = torch.stack([prompt.pooled for prompt in background])
        self.router.set_background(pooled, self.config.background_prompts)

    def _solve(self, rows: list[Row], features: list[Features], masks: Tensor) -> list[Solved]:
        config = self.config
        active = self.router.unpack(masks)
        starts = [0 if config.scope == "full" else len(row.prompt) - 1 for row in rows]
        edits = EditRows(self.decoder, self.layer, rows, features, starts, len(rows) // len(active))
        x = edits.inputs.float() * active[edits.owner]
        gram = x @ x.T
        start = x @ self.memory.weight
        steps_sum, gradient = torch.zeros_like(start), torch.zeros_like(start)
        keep = 1.0 if config.decay == "none" else 1 - config.learning_rate * config.weight_decay
        alpha = torch.ones((), dtype=torch.float64, device=self.device)
        norms = GradientNorms(gram, edits.owner, edits.edits)
        stopping = StoppingRule(edits.edits, config.stop_loss, config.stop_change, self.device)

        def look() -> None:
            loss, found = edits.loss_and_gradient(alpha * start - gram @ steps_sum)
            gradient.copy_(found)
            stopping.take_in(loss)

        def step() -> None:
            clip = (config.clip_norm / (norms(gradient) + 1e-6)).clamp(max=1.0) * stopping.running
            alpha.mul_(keep)
            steps_sum.mul_(keep).add_(config.learning_rate * clip[edits.owner, None] * gradient)

        descend(look, step, config.steps, stopping, self.repeated)
        records, added = [], alpha * start
        for e in range(edits.edits):
            tokens, columns = edits.owner == e, active[e].nonzero()[:, 0]
            tensors = {"x": x[tokens][:, columns].to(edits.inputs.dtype), "h": steps_sum[tokens]}
            if config.record_rank is not None:
                tensors = of_rank(config.record_rank, tensors["x"].float(), tensors["h"])
            added -= (x[:, columns] @ tensors["x"].float().T) @ tensors["h"]
            records.append(Record(tensors, {"alpha": float(alpha)}, masks[e]))
        written = stopping.written(edits.answered(added))
        return [Solved(*pair) for pair in zip(written, records)]

    def check(self, record: Record) -> None:
        super().check(record)
        if not 0 <= record.numbers.get("alpha", -1) <= 1:
            raise CorrigendaError('its number "alpha" is not one from 0 to 1')
        if int(self.router.unpack(record.fingerprint[None].to(self.device)).sum()) != self.config.top_k:
            raise CorrigendaError(f"its mask does not have {self.config.top_k} features")

    def reset(self) -> None:
        self.memory.reset(self._inherited)
        self.router.remove(set(range(self.router.size)))

    def ground(self) -> dict[str, Tensor]:
        inherited = {} if self._inherited is None else {"memory.weight": self._inherited}
        return {**inherited, **self.router.ground()}

    def load_ground(self, tensors: dict[str, Tensor]) -> None:
        if "memory.weight" in tensors:
            found, wanted = list(tensors["memory.weight"].shape), list(self.memory.weight.shape)
            if found != wanted:
                raise CorrigendaError(f"its memory from an earlier version has the shape {found}, not {wanted}")
            self._inherited = tensors["memory.weight"].to(self.memory.weight)
            self.memory.reset(self._inherited)
        self.router.load_ground(tensors)
        self.memory.masks = self.router.bank
        self.has_background = True

    def state(self) -> dict[str, Tensor]:
        return {"memory.weight": self.memory.weight, **self.router.state()}


class GradientNorms:
    """Norm of each edit's gradient by the matrix, `||X_e^T G_e||`, from its Gram matrix `X_e X_e^T` alone."""

    def __init__(self, gram: Tensor, owner: Tensor, edits: int) -> None:
        self._tokens = [(owner == edit).nonzero()[:, 0] for edit in range(edits)]
        self._grams = [gram[tokens][:, tokens] for tokens in self._tokens]

    def __call__(self, gradient: Tensor) -> Tensor:
        squares = []
        for tokens, gram in zip(self._tokens, self._grams):
            own = gradient[tokens]
            squares.append(((own @ own.T) * gram).sum())
        return torch.stack(squares).clamp(min=0).sqrt()
