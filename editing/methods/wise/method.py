"""WISE (arXiv 2405.14768): edits in side memories, a random gradient mask for each, and a margin that routes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ....kernels import ops
from ...backbone.background import background_prompts
from ...backbone.decoder import Decoder
from ...backbone.packed import PackedPrompts
from ...backbone.patch import Patch
from ...edits.edit import Edit
from ...edits.prompts import PromptFormat
from ...errors import CorrigendaError
from ...memories.random_bits import random_bits
from ...memories.shards import SideMemories
from ...routers.context import RoutingContext
from ...routers.router import Decision
from ..method import Method
from ..record import Record, Solved, check_tensors, of_rank
from ..steps import EditRows, StoppingRule, descend
from .config import WiseConfig
from .defaults import resolved
from .margin import Margin

_LONGEST = {"published": 100, "mean": 1 << 30, "max": 0}
"""Tokens up to which a prompt's distance is the mean of theirs, and beyond which the maximum."""


class Wise(Method):
    """SGD on the shard in use, the entries of its mask alone, on cross-entropy and margin loss.

    The margin loss wants the shard to move the layer's output far on the edit, and hardly on an irrelevant prompt
    (here one of the background's): how far it does is then what names the memory that answers. Shards are residuals
    to the frozen weight W. A full one is closed; when enough are, they are merged.

    Within an edit the inputs X `[tokens, D]` and the mask never change, so its steps sum up, for the layer output's
    gradient G: with keep = 1 - lr wd, each step is H <- keep H + lr G, and after n of them, alpha = keep^n,

        delta <- alpha delta - (1 - alpha) W - mask * (X^T H)

    (W only where it decays too). With `spared`, X stands for the inputs less what background prompts have in common
    with them (`_written_along`), a preconditioned gradient; what is read is always the plain input. The record of an
    edit is its (X, H), at the tokens where H is not 0, and its alpha, shard and distance; `solve` takes the published
    steps on a copy, and the memory is written from the records, by one such sum each. `solve` clamps at every step, as
    published, and `apply` once: where an entry runs into `norm_constraint` and back within one edit, they differ.

    The memory is the recorded updates of the edits that are in, each in the shard of its writing; an edit that was
    written while another was in and is out now keeps its update.
    """

    record_shapes: ClassVar = {"x": ("tokens", "D"), "h": ("tokens", "d")}
    names_edits: ClassVar = False
    keeps_unsolved = True
    config: WiseConfig
    memory: SideMemories
    router: SideMemories  # type: ignore[assignment] # it names memories, not edits

    resolved = staticmethod(resolved)

    def __init__(self, decoder: Decoder, prompts: PromptFormat, config: WiseConfig) -> None:
        super().__init__(decoder, prompts, config)
        self.memory = self.router = SideMemories(
            self.width,
            self.out_width,
            self.device,
            act_ratio=config.act_ratio,
            activated=config.distance == "activated",
            longest=_LONGEST[config.reduction],
            shared_minimum=config.variant == "merge",
        )
        self._irrelevant = [tuple(prompts.encode(prompts.wrap(prompt))) for prompt in background_prompts()]
        self._mask: tuple[int, Tensor] | None = None
        self._sparing: Tensor | None = None
        self._frozen_weight: Tensor | None = None

    def solve(self, edits: Sequence[Edit]) -> list[Solved]:
        """A batch that a shard has no room for goes on in the next one, after what fills the first."""
        solved: list[Solved] = []
        memory = self.memory.view()
        while len(solved) < len(edits):
            room = max(1, self.config.save_every - memory.current.edits)
            part = self._solve(edits[len(solved) : len(solved) + room], memory)
            solved += part
            if len(solved) < len(edits):
                self._write(memory, [one.record for one in part])
        return solved

    def apply(self, records: Sequence[Record]) -> None:
        self._write(self.memory, records)

    def _write(self, memory: SideMemories, records: Sequence[Record]) -> None:
        for number, group in itertools.groupby(records, key=lambda record: int(record.numbers["shard"])):
            if number > memory.current.number:
                self._advance(memory, number)
            together = list(group)
            self._step_by_records(memory.writable(), together, number)
            memory.count_in([record.numbers["minimum"] for record in together], [r.fingerprint for r in together])
            # An edit that was put in again may come after the end of its shard, and is then in a later one.
            if number == memory.current.number and any(record.numbers["closes"] for record in together):
                self._advance(memory, number + 1)

    def _advance(self, memory: SideMemories, number: int) -> None:
        """Go on to the shard of this number, and merge those that are due."""
        config, before = self.config, memory.current.number
        memory.finish(number)
        shards_merged = (config.merge_every or 0) // config.save_every
        if not shards_merged or number // shards_merged == before // shards_merged:
            return
        count = sum(not shard.merged for shard in memory.finished)
        weights = [1 / max(1, count)] * count
        if config.variant == "merge" and len(memory.finished) > count > 0:
            weights = [config.merged_weight, *((1 - config.merged_weight) / count for _ in range(count))]
        if weights:
            memory.merge(weights, config.merge, config.merge_density, config.seed, config.merge_scale)

    def _solve(self, edits: Sequence[Edit], memory: SideMemories) -> list[Solved]:
        """Take the steps of edits that the current shard has room for, on a copy of it."""
        config, contexts, shard = self.config, self.prepare(), memory.current
        rows = [row for edit in edits for row in self.rows(edit, contexts)]
        numbers = range(shard.end * config.irrelevant_prompts, (shard.end + len(edits)) * config.irrelevant_prompts)
        irrelevant = [number % len(self._irrelevant) for number in numbers]
        known, replayed = self._known_inputs(irrelevant), self._replayed(memory)
        apart = replayed if known else [*(self._irrelevant[number] for number in irrelevant), *replayed]
        features = self.features([*(row.tokens for row in rows), *apart])
        inputs_apart = known + [f.inputs for f in features[len(rows) :]]
        batch = EditRows(self.decoder, self.layer, rows, features[: len(rows)], [0] * len(rows), len(contexts))
        x = torch.cat([batch.inputs, *inputs_apart])
        written = self._written_along(x)
        base, whole = self._base_output(x), torch.tensor([0, len(x)], dtype=torch.int32, device=x.device)
        margin = Margin(base, batch, [len(inputs) for inputs in inputs_apart], bool(shard.edits), config)
        stopping = StoppingRule(len(edits), config.stop_loss, config.stop_change, self.device)
        least = torch.full((len(edits),), torch.inf, dtype=torch.float32, device=self.device)
        decay = 0.0 if config.decay == "none" else config.learning_rate * config.weight_decay
        delta, steps_sum = shard.delta.clone(), x.new_zeros(len(x), self.out_width, dtype=torch.float32)
        gradient, alpha = torch.zeros_like(steps_sum), torch.ones((), dtype=torch.float64, device=self.device)

        def look() -> None:
            # On a GPU the op multiplies on tensor cores, to 4e-6; float32 products run at a fifteenth of their rate.
            side, *_ = ops.delta_linear(x, base, delta, whole)
            loss, of_edits = batch.loss_and_gradient(side[: len(batch.row)])
            margin_loss, of_margin, distance = margin(side)
            least.copy_(torch.where(stopping.running, distance, least))
            stopping.take_in(loss + margin_loss)
            of_all = of_margin + F.pad(of_edits, (0, 0, 0, len(x) - len(of_edits)))
            gradient.copy_(torch.where(margin.goes_on(stopping.running)[:, None], of_all, 0.0))

        def step() -> None:
            self._step(delta, written, gradient, shard.number, config.learning_rate, decay)
            alpha.mul_(1 - decay)
            steps_sum.mul_(1 - decay).add_(config.learning_rate * gradient)

        self._gradient_mask(shard.number), self._decayed()  # made before, where a step may wait for the host
        descend(look, step, config.steps, stopping, self.repeated)
        if not all(found.isfinite().all() for found in (stopping.loss, least, steps_sum)):
            raise CorrigendaError(
                f"The learning rate {config.learning_rate} is too high for this model: an edit's loss is not finite."
            )
        closes = shard.edits + len(edits) >= config.save_every
        records = []
        for e, minimum in enumerate(least.tolist()):
            used = (margin.owner == e) & steps_sum.any(1)
            tensors = {"x": written[used], "h": steps_sum[used]}
            if config.record_rank is not None:
                tensors = of_rank(config.record_rank, tensors["x"].float(), tensors["h"])
            said = {"alpha": float(alpha), "minimum": minimum, "shard": shard.number}
            said["closes"] = int(closes and e == len(edits) - 1)
            replay = rows[e * len(contexts)].tokens if config.replay else ()
            records.append(Record(tensors, said, torch.tensor(replay, dtype=torch.int32, device="cpu")))
        self._step_by_records(delta.copy_(shard.delta), records, shard.number)
        side, *_ = ops.delta_linear(x, base, delta, whole)
        written = stopping.written(batch.answered(side[: len(batch.row)]))
        return [Solved(*pair) for pair in zip(written, records)]

    def _step_by_records(self, delta: Tensor, records: Sequence[Record], shard: int) -> None:
        """Write edits of one batch and shard, in place: they took the same steps, and share what these decayed."""
        x, h = (torch.cat([r.tensors[name].to(self.device) for r in records]) for name in ("x", "h"))
        self._step(delta, x, h, shard, 1.0, 1 - records[0].numbers["alpha"])

    def _step(self, delta: Tensor, x: Tensor, h: Tensor, shard: int, learning_rate: float, decay: float) -> None:
        config = self.config
        masked = config.decay == "masked"
        ops.masked_sgd_(
            delta,
            x,
            h,
            self._gradient_mask(shard),
            self._decayed(),
            learning_rate,
            decay,
            masked,
            config.norm_constraint,
        )

    def _written_along(self, x: Tensor) -> Tensor:
        """Inputs `[tokens, D]`, their parts along directions that background prompts use much made small.

        (I + spared C / mean(diag C))^-1 x, for C the second moment of background inputs. The inverse `[D, D]` is made
        once: solving for each edit's tokens, over 5,900 of the background, took half an edit's time on SmolLM2.
        """
        if not self.config.spared:
            return x
        if self._sparing is None:
            unrelated = self.memory.unrelated
            used = (self._background() if unrelated is None else unrelated[0]).inputs.float()
            second = used.T @ used
            second *= self.config.spared / second.diagonal().mean()
            second.diagonal().add_(1)
            self._sparing = torch.cholesky_inverse(torch.linalg.cholesky(second))
        return (x.float() @ self._sparing).to(x.dtype)

    @torch.no_grad()
    def _base_output(self, x: Tensor) -> Tensor:
        return self.decoder.down_proj(self.layer)(x).float()

    def _gradient_mask(self, shard: int) -> Tensor:
        """int32 `[D, ceil(d/32)]`: which entries a shard's edits may write."""
        if self._mask is None or self._mask[0] != shard:
            config, group, first, last = self.config, shard, 0.0, self.config.mask_ratio
            if config.disjoint_masks:
                together = config.merge_every // config.save_every
                group, part = divmod(shard, together)
                first, last = part / together, min(part / together + config.mask_ratio, (part + 1) / together)
            shape = self.width, self.out_width, last, self.device
            self._mask = shard, random_bits(config.seed, group, *shape, below=first)
        return self._mask[1]

    def _decayed(self) -> Tensor | None:
        """The frozen weight `[D, d]`, where decay shrinks it too."""
        if self.config.decay != "none" and self._frozen_weight is None:
            weight = self.decoder.down_proj(self.layer).weight
            if not weight.is_floating_point() or weight.shape != (self.out_width, self.width):
                raise CorrigendaError('This model\'s weights are quantised: WISE needs decay="none" on it.')
            self._frozen_weight = weight.detach().T.contiguous()
        return self._frozen_weight

    def _known_inputs(self, irrelevant: Sequence[int]) -> list[Tensor]:
        """The layer's inputs `[tokens, D]` of background prompts, where the ground has those of all; else none."""
        if self.memory.unrelated is None:
            return []
        (inputs, offsets, _), _ = self.memory.unrelated
        ends = offsets.tolist()
        if max(irrelevant) + 1 >= len(ends):
            return []
        return [inputs[ends[number] : ends[number + 1]] for number in irrelevant]

    def _replayed(self, memory: SideMemories) -> list[tuple[int, ...]]:
        """An earlier edit of every shard, as token ids, for the margin loss: of the shard in use the last."""
        if not self.config.replay:
            return []
        generator = torch.Generator().manual_seed(self.config.seed + memory.size)
        filled = [shard for shard in memory.shards if shard.edits]
        picked = [
            int(torch.randint(shard.first, shard.end, (1,), generator=generator, dtype=torch.int64, device="cpu"))
            for shard in filled
        ]
        return [tuple(memory.history[edit].tolist()) for edit in picked]

    # Routing

    def tap(self, patch: Patch, context: RoutingContext) -> None:
        """Decide in the edited layer itself, between its own output and what memories add to it."""

        def observe(_module: torch.nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            if context.active and context.deciding:
                self.memory.observe(args[0], out, context)

        patch.hook(self.decoder.down_proj(self.layer), observe, first=True)

    @torch.no_grad()
    def routes(self, prompts: Sequence[str]) -> Decision:
        return self.memory.decide(self.distances(prompts))

    @torch.no_grad()
    def distances(self, prompts: Sequence[str]) -> Tensor:
        """How far each memory moves the layer's output for each prompt, `[shards, prompts]`."""
        x, offsets, weight = PackedPrompts.of(self.decoder, self.layer, self.prompts, prompts)
        return self.memory.distances(x, self._base_output(x), offsets, weight)[0]

    def holds(self, route: int, edit: int) -> bool:
        return route >= 0 and self.memory.shards[route].first <= edit < self.memory.shards[route].end

    def memory_name(self, route: int) -> str | None:
        return self.memory.name(route) if route >= 0 else None

    # Records

    def check(self, record: Record) -> None:
        check_tensors(record.tensors, self.record_shapes, {"D": self.width, "d": self.out_width})
        numbers = record.numbers
        if not 0 <= numbers.get("alpha", -1) <= 1:
            raise CorrigendaError('its number "alpha" is not one from 0 to 1')
        # Below infinity is every whole number, and not every one is a float.
        if not 0 <= numbers.get("minimum", -1) <= torch.finfo(torch.float32).max:
            raise CorrigendaError('its number "minimum" is not a distance')
        if not _is_count(numbers.get("shard")) or numbers.get("closes") not in (0, 1):
            raise CorrigendaError("it does not say in which shard it is")
        vocabulary = self.decoder.model.get_input_embeddings().num_embeddings
        ids = record.fingerprint.tolist()
        if bool(ids) != self.config.replay or not all(0 <= token < vocabulary for token in ids):
            raise CorrigendaError("its tokens, by which it is replayed, are not those of a prompt")

    def fingerprints(self, edits: Sequence[Edit]) -> list[Tensor]:
        return [torch.zeros(0, dtype=torch.int32, device="cpu") for _ in edits]

    def learn_background(self) -> None:
        """What `spared` and `threshold_from` need; irrelevant prompts take part in the loss itself."""
        if self.config.threshold_from == "background":
            self._know_unrelated(self._background())
        self._written_along(torch.zeros(0, self.width, dtype=torch.float32, device=self.device))

    def _background(self) -> PackedPrompts:
        prompts = background_prompts()[: self.config.background_prompts]
        return PackedPrompts.of(self.decoder, self.layer, self.prompts, prompts)

    def _know_unrelated(self, prompts: PackedPrompts) -> None:
        self.memory.unrelated = prompts, self._base_output(prompts.inputs)

    def reset(self) -> None:
        self.memory.reset()

    def reserve(self, edits: int, rows: int, prompt_tokens: int) -> None:
        """Nothing: edits are written into the shard as it is."""

    def ground(self) -> dict[str, Tensor]:
        if self.config.threshold_from != "background":
            return {}
        unrelated = self.memory.unrelated
        return (PackedPrompts.none(self.width) if unrelated is None else unrelated[0]).tensors("router.unrelated")

    def load_ground(self, tensors: dict[str, Tensor]) -> None:
        if tensors:
            inputs, *rest = (part.to(self.device) for part in PackedPrompts.from_tensors("router.unrelated", tensors))
            dtype = self.decoder.model.get_input_embeddings().weight.dtype  # not always the writer's
            self._know_unrelated(PackedPrompts(inputs.to(dtype), *rest))
        self.has_background = True

    def state(self) -> dict[str, Tensor]:
        return self.memory.state()


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
