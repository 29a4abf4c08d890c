"""WISE (arXiv 2405.14768): edits in side memories, a random gradient mask for each, and a margin that routes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels import ops
from ..background import background_prompts
from ..config import WiseConfig
from ..context import RoutingContext
from ..decoder import Decoder
from ..edits import Edit
from ..errors import CorrigendaError
from ..frozen import Features, Row, frozen_features
from ..prompts import PromptFormat
from ..random_bits import random_bits
from ..side_memory import SideMemories
from .frame import Method, Written
from .steps import EditRows, Progress

PUBLISHED_LONGEST = 100
"""Tokens up to which the published code takes a prompt's mean distance, and beyond which the maximum."""


class Wise(Method):
    """SGD on the shard in use, the entries of its mask alone, on cross-entropy and margin loss.

    The margin loss wants the shard to move the layer's output far on the edit, and hardly on an irrelevant prompt
    (here one of the background's): how far it does is then what names the memory that answers. Shards are residuals
    to the frozen weight. A full one is closed; when enough are, they are merged.
    """

    config: WiseConfig
    memory: SideMemories
    router: SideMemories

    def __init__(self, decoder: Decoder, prompts: PromptFormat, config: WiseConfig) -> None:
        super().__init__(decoder, prompts, config)
        self.memory = self.router = SideMemories(
            self.width,
            self.out_width,
            self.device,
            act_ratio=config.act_ratio,
            activated=config.distance == "activated",
            longest=PUBLISHED_LONGEST if config.reduction == "published" else 1 << 30,
            shared_minimum=config.variant == "merge",
        )
        self._irrelevant = [tuple(prompts.encode(prompts.wrap(prompt))) for prompt in background_prompts()]
        self._history: list[tuple[int, ...]] = []
        self._mask: tuple[int, Tensor] | None = None
        self._frozen_weight: Tensor | None = None

    def write(self, edits: Sequence[Edit]) -> list[Written]:
        """Write a batch of edits, its shards' boundaries kept."""
        written: list[Written] = []
        while len(written) < len(edits):
            shard = self.memory.current
            room = self.config.save_every - (shard.end - shard.first)
            part = edits[len(written) : len(written) + room]
            written += self._write(part)
            if len(part) == room:
                self._close()
        return written

    def _write(self, edits: Sequence[Edit]) -> list[Written]:
        contexts = self.prepare()
        shard = self.memory.current
        rows = [row for edit in edits for row in self.rows(edit, contexts)]
        numbers = range(shard.end, shard.end + len(edits))
        apart = [self._irrelevant[number % len(self._irrelevant)] for number in numbers] + self._replayed()
        features = frozen_features(self.decoder, self.layer, [*(row.tokens for row in rows), *apart])
        written = self._solve(rows, features, len(edits))
        shard.end += len(edits)
        if self.config.replay:
            self._history += [rows[i].tokens for i in range(0, len(rows), len(contexts))]
        return written

    def _solve(self, rows: list[Row], features: list[Features], edits: int) -> list[Written]:
        config, shard, contexts = self.config, self.memory.current, len(rows) // edits
        batch = EditRows(self.decoder, self.layer, rows, features[: len(rows)], [0] * len(rows), contexts)
        apart = [f.inputs for f in features[len(rows) :]]
        x = torch.cat([batch.inputs, *apart])
        margin = _Margin(self._base_output(x), batch, apart, config)
        progress = Progress(edits, config.stop_loss, config.stop_change, self.device)
        least = torch.full((edits,), torch.inf, device=self.device)
        settings = (config.learning_rate, *self._decay(), config.norm_constraint)
        for _ in range(config.steps):
            side = x.float() @ shard.delta
            loss, gradient = batch.loss_and_gradient(side[: len(batch.row)])
            margin_loss, margin_gradient, distance = margin(side)
            least = torch.where(progress.running, distance, least)
            if not progress.goes_on(loss + margin_loss):
                break
            gradient = margin_gradient + F.pad(gradient, (0, 0, 0, len(x) - len(gradient)))
            gradient = torch.where(margin.goes_on(progress.running)[:, None], gradient, 0.0)
            ops.masked_sgd_(shard.delta, x, gradient, self._gradient_mask(), self._decayed(), *settings)
        shard.minimum = torch.minimum(shard.minimum, least.amin())
        return [Written(*pair) for pair in zip(progress.loss.tolist(), progress.steps.tolist())]

    @torch.no_grad()
    def _base_output(self, x: Tensor) -> Tensor:
        return self.decoder.down_proj(self.layer)(x).float()

    def _gradient_mask(self) -> Tensor:
        """int32 `[D, ceil(d/32)]`: which entries the shard in use may write."""
        number = self.memory.current.first // self.config.save_every
        if self._mask is None or self._mask[0] != number:
            shape = self.width, self.out_width, self.config.mask_ratio, self.device
            self._mask = number, random_bits(self.config.seed, number, *shape)
        return self._mask[1]

    def _decay(self) -> tuple[float, bool]:
        """What share of the weight a step takes off, and whether of the mask's entries alone."""
        share = 0.0 if self.config.decay == "none" else self.config.learning_rate * self.config.weight_decay
        return share, self.config.decay == "masked"

    def _decayed(self) -> Tensor | None:
        """The frozen weight `[D, d]`, where decay shrinks it too."""
        if self.config.decay != "none" and self._frozen_weight is None:
            weight = self.decoder.down_proj(self.layer).weight
            if not weight.is_floating_point() or weight.shape != (self.out_width, self.width):
                raise CorrigendaError('This model\'s weights are quantised: WISE needs decay="none" on it.')
            self._frozen_weight = weight.detach().T.contiguous()
        return self._frozen_weight

    def _close(self) -> None:
        """Close a full shard, and merge those that are due."""
        config, memory = self.config, self.memory
        memory.finish()
        if not config.merge_every or memory.current.first % config.merge_every:
            return
        count = config.merge_every // config.save_every
        weights = [1 / count] * count
        if config.variant == "merge" and memory.finished[0].merged:
            weights = [config.merged_weight, *((1 - config.merged_weight) / count for _ in range(count))]
        memory.merge(len(weights), weights, config.merge, config.merge_density, config.seed)

    def _replayed(self) -> list[tuple[int, ...]]:
        """An earlier edit of every shard, as token ids, for the margin loss: of the shard in use the last."""
        if not self.config.replay:
            return []
        generator = torch.Generator().manual_seed(self.config.seed + len(self._history))
        filled = [shard for shard in self.memory.shards if shard.end > shard.first]
        picked = [int(torch.randint(s.first, s.end, (1,), generator=generator)) for s in filled]
        return [self._history[edit] for edit in picked]

    def tap(self, context: RoutingContext) -> torch.utils.hooks.RemovableHandle:
        """Decide in the edited layer itself, between its own output and what memories add to it."""

        def observe(_module: torch.nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            if context.active and context.deciding:
                self.memory.observe(args[0], out, context)

        return self.decoder.down_proj(self.layer).base.register_forward_hook(observe)

    def edit_of(self, route: int) -> int | None:
        return None

    def holds(self, route: int, edit: int) -> bool:
        return route >= 0 and self.memory.shards[route].first <= edit < self.memory.shards[route].end

    def learn_background(self) -> None:
        """Nothing: irrelevant prompts take part in the loss itself."""

    def remove(self, edits: set[int]) -> None:
        raise CorrigendaError(
            "WISE's edits share their memories, from which a single one cannot be taken out: write the others anew, or "
            "use the associative method."
        )

    def state(self) -> dict[str, Tensor]:
        tokens = torch.tensor([token for row in self._history for token in row], dtype=torch.int32)
        lengths = torch.tensor([len(row) for row in self._history], dtype=torch.int32)
        return {**self.memory.state(), "history.tokens": tokens, "history.lengths": lengths}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self.memory.load_state(tensors)
        rows = tensors["history.tokens"].split(tensors["history.lengths"].tolist())
        self._history = [tuple(row.tolist()) for row in rows]


class _Margin:
    """The margin loss of a batch: each edit's own, and that of the replayed ones shared out among them.

    La = relu(D_irrelevant - alpha) + relu(beta - D_edit) + relu(gamma - (D_edit - D_irrelevant)), each the mean over
    the rows where it is above 0; D is the mean distance of a row's tokens.
    """

    def __init__(self, base: Tensor, batch: EditRows, apart: Sequence[Tensor], config: WiseConfig) -> None:
        device = base.device
        self.base = base
        self.config = config
        self.edits = batch.edits
        self.in_edits = int(batch.row.max()) + 1
        self.rows = self.in_edits + len(apart)
        lengths = torch.tensor([len(inputs) for inputs in apart], device=device)
        row_apart = torch.arange(self.in_edits, self.rows, device=device).repeat_interleave(lengths)
        self.row = torch.cat([batch.row, row_apart])
        counted = torch.ones(len(self.row), device=device)
        if config.distance_tokens == "prompt":
            counted[: len(batch.row)] = batch.in_prompt.float()
        self.share = counted / counted.new_zeros(self.rows).index_add_(0, self.row, counted)[self.row]

    def __call__(self, side: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss `[edits]`, gradient of the sum by `side` `[tokens, d]`, mean distance of each edit's rows `[edits]`."""
        side = side.detach().requires_grad_()
        change = F.silu(self.base + side) - F.silu(self.base) if self.config.distance == "activated" else side
        distance = torch.linalg.vector_norm(change, dim=1) * self.share
        distance = distance.new_zeros(self.rows).index_add(0, self.row, distance)
        edited = distance[: self.in_edits].view(self.edits, -1)
        irrelevant = distance[self.in_edits : self.in_edits + self.edits, None]
        alpha, beta, gamma = self.config.alpha, self.config.beta, self.config.gamma
        loss = sum(map(_mean_of_positive, (irrelevant - alpha, beta - edited, gamma - (edited - irrelevant))))
        replayed = distance[self.in_edits + self.edits :]
        if len(replayed):
            own, earlier = beta - replayed[-1:], replayed[:-1] - alpha
            loss = loss + (_mean_of_positive(own[None]) + _mean_of_positive(earlier[None])) / self.edits
        (gradient,) = torch.autograd.grad(loss.sum(), side)
        return loss.detach(), gradient, edited.detach().mean(1)

    def goes_on(self, running: Tensor) -> Tensor:
        """bool `[tokens]`: whether the edit that a token was taken in for still runs."""
        of_row = running.repeat_interleave(self.in_edits // self.edits)
        replayed = running.any().expand(self.rows - self.in_edits - self.edits)
        return torch.cat([of_row, running, replayed])[self.row]


def _mean_of_positive(values: Tensor) -> Tensor:
    positive = values.clamp(min=0)
    return positive.sum(1) / (values > 0).sum(1).clamp(min=1)
