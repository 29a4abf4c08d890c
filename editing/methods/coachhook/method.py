"""CoachHooK (COMEBA-HK, arXiv 2403.05330): changed weights on hooked layers, which answer where they stand out."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor

from ...backbone.decoder import Decoder
from ...backbone.frozen import Features, Row
from ...backbone.packed import PackedPrompts
from ...backbone.patch import Patch
from ...edits.edit import Edit
from ...edits.prompts import PromptFormat
from ...errors import CorrigendaError
from ...memories.hooked_weights import HookedWeights, Spread, largest
from ...memories.weight_changes import WeightChanges
from ...routers.always import DecidedWithin
from ...routers.context import RoutingContext
from ...routers.router import Decision
from ..memit.method import Regularised
from ..record import Record, Solved
from ..weights.method import down_proj
from ..weights.values import ValueProblem
from .config import CoachHookConfig
from .defaults import resolved


class CoachHook(Regularised):
    """A token's output at a hooked layer is W_h k where it differs from W_0 k by more than is usual in its sequence:

        d_t = |(W_h - W_0) k_t|,  z_t = (d_t - mean d) / deviation of d,  W_h k_t if z_t >= a, else W_0 k_t

    A batch is written as MEMIT's, with A + K K^T for MEMIT's matrix, A = lambda C + sum of K K^T over all edits so far.
    Its values are found through the hooks; then all of them answer always, and each by its rule again when its layer is
    written. At last a falls to the least z, on the base model, of a prompt of the batch. A record has its edit's "key"
    and z too: what is taken out neither holds others back nor keeps a low.
    """

    record_shapes: ClassVar = {"x": ("rank", "D"), "h": ("rank", "d"), "key": ("rank", "D")}
    bakeable: ClassVar = False
    display: ClassVar = "CoachHooK"
    config: CoachHookConfig
    memory: HookedWeights
    router: DecidedWithin

    resolved = staticmethod(resolved)

    def __init__(self, decoder: Decoder, prompts: PromptFormat, config: CoachHookConfig) -> None:
        super().__init__(decoder, prompts, config)
        self.router = DecidedWithin(self.device)
        self._keys: dict[int, list[Tensor]] = {layer: [] for layer in self.edited_layers()}
        self._always: set[str] = set()

    def new_memory(self, devices: Mapping[str, torch.device]) -> HookedWeights:
        return HookedWeights(self.shapes, devices, self.config.alpha, self.config.mode == "published")

    # Writing

    def directions(self, layer: int, keys: Tensor) -> Tensor:
        before = self._keys[layer]
        return self.factors[layer].solve_beside(keys, torch.cat(before).T.double() if before else None)

    def through(self, memory: WeightChanges) -> contextlib.AbstractContextManager[None]:
        self._always.clear()
        return cast(HookedWeights, memory).standing_out(self.modules, self._always)

    def written(self, site: str) -> None:
        self._always.discard(site)

    def features_now(self, layer: int, rows: Sequence[Sequence[int]]) -> list[Features]:
        """In groups of one length: what a hook makes of a row depends on all of its tokens, and padding is none."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        found: dict[int, Features] = {}
        for _, group in itertools.groupby(order, key=lambda i: len(rows[i])):
            places = list(group)
            found |= zip(places, super().features_now(layer, [rows[i] for i in places]))
        return [found[i] for i in range(len(rows))]

    def key_row(self, row: Row, lookup: int) -> tuple[int, ...]:
        """All of it, for the same reason."""
        return row.prompt

    def _spread(self, memory: WeightChanges, asked: Sequence[ValueProblem], wanted: Tensor) -> list[dict[str, Tensor]]:
        self._always.update(self.modules)
        self._written_keys: dict[int, Tensor] = {}
        tensors = super()._spread(memory, asked, wanted)
        for layer, keys in self._written_keys.items():
            for own, key in zip(tensors, keys):
                own[f"{down_proj(layer)}.key"] = key[None]
        return tensors

    def mean_keys(self, asked: Sequence[ValueProblem], layer: int) -> Tensor:
        keys = super().mean_keys(asked, layer)
        self._written_keys[layer] = keys
        return keys

    def solve(self, edits: Sequence[Edit]) -> list[Solved]:
        solved = super().solve(edits)
        memory = self.memory.copy()
        for one in solved:
            self.add(memory, one.record)
        scores = self.scores(memory, [edit.prompt for edit in edits])
        for e, one in enumerate(solved):
            one.record.numbers.update({f"z {site}": float(of_site[e]) for site, of_site in scores.items()})
        return solved

    @torch.no_grad()
    def scores(self, memory: HookedWeights, prompts: Sequence[str]) -> dict[str, Tensor]:
        """By site the largest z `[prompts]` of each prompt's tokens, on the base model."""
        found = {}
        for layer in self.edited_layers():
            site = down_proj(layer)
            x, offsets, weight = PackedPrompts.of(self.decoder, layer, self.prompts, prompts)
            lengths = offsets.diff().long()
            sequence = torch.arange(len(prompts), dtype=torch.int64, device=x.device).repeat_interleave(lengths)
            counted = torch.ones_like(weight, dtype=torch.bool) if memory.published else weight > 0
            distance = (x.float() @ memory.matrices[site]).norm(dim=1)
            z = Spread.of(distance, sequence, counted, len(prompts)).score(distance, sequence)
            found[site] = largest(torch.where(counted, z, 0.0), sequence, len(prompts))
        return found

    def apply(self, records: Sequence[Record]) -> None:
        super().apply(records)
        for layer, kept in self._keys.items():
            site = down_proj(layer)
            kept += [record.tensors[f"{site}.key"].to(self.device) for record in records]
            if self.config.falls:  # a prompt of which every token is moved alike says nothing: its z is 0
                known = [z for record in records if (z := record.numbers[f"z {site}"]) > 0]
                self.memory.thresholds[site] = min([self.memory.thresholds[site], *known])

    def reset(self) -> None:
        super().reset()
        self._keys = {layer: [] for layer in self._keys}

    def check(self, record: Record) -> None:
        super().check(record)
        for site in self.modules:
            z = record.numbers.get(f"z {site}", -1)
            if not 0 <= z <= torch.finfo(torch.float32).max or f"{site}.key" not in record.tensors:
                raise CorrigendaError(f"it does not say by how much its prompt stood out at {site}")

    # Answering

    def tap(self, patch: Patch, context: RoutingContext) -> None:
        """Find where each layer's change stands out, before its output is asked for."""
        for site, module in self.modules.items():

            def observe(_module: torch.nn.Module, args: tuple[Tensor, ...], site: str = site) -> None:
                if not context.active:
                    return
                if context.deciding and site == next(iter(self.modules)):
                    context.routes.zero_()  # until the last layer, all may yet be answered
                ratio = self.memory.observe(site, args[0], context)
                if ratio is not None and site == next(reversed(self.modules)):
                    context.decision = self.router.decision(ratio[1 : context.slots + 1])
                    context.routes.copy_(context.decision.route)

            patch.pre_hook(module, observe)

    @torch.no_grad()
    def routes(self, prompts: Sequence[str]) -> Decision:
        """As each prompt stands out on the base model; in a pass, a layer sees what those below it have changed."""
        scores = self.scores(self.memory, prompts)
        ratio = torch.stack([z / self.memory.thresholds[site] for site, z in scores.items()]).amax(0)
        return self.router.decision(ratio)

    def memory_name(self, route: int) -> str | None:
        return "hooked weights" if route >= 0 else None
