"""WISE's memories: residual matrices beside the layer, and the rule by which a prompt is answered from one of them."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from ...kernels import ops
from ..backbone.packed import PackedPrompts
from ..profiling import scope
from ..routers.context import RoutingContext
from ..routers.router import Decision
from ..views import Viewed
from .memory import matrix_norms
from .merging import merge


@dataclass(frozen=True, eq=False)
class Shard:
    """One side memory: what it adds to the frozen weight, for the edits at places `first` to `end`.

    number   of the shard in the stream; of a merged one, of the last that went into it
    delta    fp32 `[D, d]`, the difference to the frozen weight, transposed
    minimum  fp32 `[]`, the smallest distance at which an edit of it was left by its writing; infinite without edits
    merged   whether it was made of others
    """

    number: int
    delta: Tensor
    minimum: Tensor
    first: int = 0
    end: int = 0
    merged: bool = False

    @property
    def edits(self) -> int:
        return self.end - self.first


class SideMemories(Viewed):
    """Shards of which the last is being written, and the router among them. `history`: every edit's token ids.

    A sequence is answered by the finished shard that moves the layer's output furthest, over its own threshold and
    further than the last shard does; else by the last shard over its threshold; else by the frozen layer alone. The
    threshold is `act_ratio` times the shard's minimum; `shared_minimum`: times the smallest of all (WISE-Merge). Where
    `unrelated` prompts are known, it is `act_ratio` times how far the shard moves all but a hundredth of them.
    """

    needs_features: ClassVar[bool] = True

    def __init__(
        self,
        width: int,
        out_width: int,
        device: torch.device,
        *,
        act_ratio: float,
        activated: bool,
        longest: int,
        shared_minimum: bool,
    ) -> None:
        super().__init__()
        self.act_ratio = act_ratio
        self.activated = activated
        self.longest = longest
        self.shared_minimum = shared_minimum
        self._shape = width, out_width
        self._device = device
        self._everything = torch.full((1, (width + 31) // 32), -1, dtype=torch.int32, device=device)
        if width % 32:
            self._everything[0, -1] = (1 << width % 32) - 1
        self._sides: list[Tensor] | None = None
        self.unrelated: tuple[PackedPrompts, Tensor] | None = None  # and what the layer makes of them
        self._reach: weakref.WeakKeyDictionary[Shard, Tensor] = weakref.WeakKeyDictionary()
        self.reset()

    def reset(self) -> None:
        """Back to no edits."""
        self.shards = [self._empty(0, 0)]
        self.history: list[Tensor] = []

    def _empty(self, number: int, first: int) -> Shard:
        delta = torch.zeros(*self._shape, dtype=torch.float32, device=self._device)
        return Shard(number, delta, torch.tensor(torch.inf, dtype=torch.float32, device=self._device), first, first)

    def view(self) -> Self:
        """The memories as they are now: what is written later, to this one or to the view, does not show in the other.

        That holds while both live; the written one then takes a copy of the current shard.
        """
        view = super().view()
        view.shards, view.history = list(self.shards), list(self.history)
        view._views = weakref.WeakSet([self])
        return view

    @property
    def current(self) -> Shard:
        """The shard that is being written."""
        return self.shards[-1]

    @property
    def finished(self) -> list[Shard]:
        return self.shards[:-1]

    @property
    def size(self) -> int:
        """The number of edits."""
        return self.current.end

    def writable(self) -> Tensor:
        """The current shard's delta, to be changed in place: its own copy where a view still reads the old one."""
        if self._parted():
            self.shards[-1] = replace(self.current, delta=self.current.delta.clone())
        return self.current.delta

    def count_in(self, minima: list[float], tokens: list[Tensor]) -> None:
        """Count edits into the current shard: at what distance their writing left them, and what replays them."""
        current = self.current
        minimum = current.minimum.clamp(max=min(minima))
        self.shards[-1] = replace(current, minimum=minimum, end=current.end + len(minima))
        self.history += tokens

    def finish(self, next_number: int) -> None:
        """Close the current shard and open an empty one; one without edits only takes the number."""
        current = self.current
        if current.edits:
            self.shards.append(self._empty(next_number, current.end))
        else:
            self.shards[-1] = replace(current, number=next_number)

    def merge(self, weights: list[float], kind: str, density: float, seed: int, scale: float = 1.0) -> None:
        """Make one shard of the last finished ones, as many as there are weights; it takes their place.

        What is merged is multiplied by `scale`; one that was merged before goes in without it, or it would grow.
        """
        old = self.finished[-len(weights) :]
        deltas = [shard.delta / scale if shard.merged else shard.delta for shard in old]
        delta = merge(kind, deltas, weights, density, seed) * scale
        minimum = torch.stack([shard.minimum for shard in old]).amin()
        merged = Shard(old[-1].number, delta, minimum, old[0].first, old[-1].end, merged=True)
        self.shards[-1 - len(old) : -1] = [merged]

    def name(self, route: int) -> str:
        """What a user is told of the memory that a route names."""
        shard = self.shards[route]
        return f"merged shards up to {shard.number}" if shard.merged else f"shard {shard.number}"

    # Routing

    @property
    def thresholds(self) -> Tensor:
        """fp32 `[shards]`: the distance from which a prompt is a shard's; infinite for one without edits."""
        if self.unrelated is not None:
            return self.act_ratio * torch.stack([self._reached(shard) for shard in self.shards])
        minima = torch.stack([shard.minimum for shard in self.shards])
        if self.shared_minimum:
            minima = minima.amin().expand(len(self.shards))
        return self.act_ratio * minima

    def _reached(self, shard: Shard) -> Tensor:
        """fp32 `[]`: the distance that a hundredth of the unrelated prompts exceed. Kept: writing makes new shards."""
        if shard not in self._reach:
            reach = shard.minimum  # infinite without edits
            if shard.edits:
                (inputs, offsets, weight), outputs = self.unrelated
                settings = self.activated, self.longest
                _, _, moved = ops.delta_linear(inputs, outputs, shard.delta, offsets, weight, *settings)
                reach = moved.quantile(0.99)
            self._reach[shard] = reach
        return self._reach[shard]

    @property
    def threshold(self) -> float:
        """The least of them, for reports."""
        return float(self.thresholds.amin())

    def decide(self, distance: Tensor) -> Decision:
        """The shard that answers each sequence, from distances `[shards, sequences]`; its score is the distance."""
        passes = distance >= self.thresholds[:, None]
        stored = torch.where(passes[:-1] & (distance[:-1] > distance[-1]), distance[:-1], -1.0)
        best, index = torch.nn.functional.pad(stored, (0, 0, 0, 1), value=-1.0).max(0)  # the first of equals
        last = torch.full_like(index, len(self.shards) - 1)
        route = torch.where(best >= 0, index, torch.where(passes[-1], last, -1))
        nearest = torch.where(route >= 0, route, distance.max(0).indices)
        second = torch.nn.functional.pad(distance, (0, 0, 0, 1)).topk(2, dim=0).values[1]
        score = distance.gather(0, nearest[None])[0]
        # A memory without edits has an infinite threshold.
        margin = (score - self.thresholds[nearest]).nan_to_num(neginf=-1.0)
        none = torch.full_like(route, -1).int()
        return Decision(route.int(), nearest.int(), score, second, margin, none, torch.zeros_like(none))

    def distances(self, x: Tensor, base: Tensor, offsets: Tensor, weight: Tensor) -> tuple[Tensor, list[Tensor]]:
        """How far each shard moves the output of each packed sequence, `[shards, sequences]`; and what each adds.

        x, base: the layer's input `[tokens, D]` and own output; weight `[tokens]`: 0 where a token does not count.
        """
        seen = [
            ops.delta_linear(x, base, shard.delta, offsets, weight, self.activated, self.longest)
            for shard in self.shards
        ]
        return torch.stack([distance for _, _, distance in seen]), [side for side, _, _ in seen]

    def observe(self, x: Tensor, base: Tensor, context: RoutingContext) -> None:
        """Decide the routes of a pass that holds whole prompts: the layer's input `[..., D]` and its own output."""
        x, base = x.reshape(-1, x.shape[-1]), base.reshape(-1, base.shape[-1])
        with scope("edit: route"):
            distance, self._sides = self.distances(x, base, context.offsets, context.weight[: len(x)])
            decision = self.decide(distance)
            context.routes.copy_(decision.route)
        context.decision = decision
        context.deciding = False  # once a prompt, whatever else passes under the same description

    def read_(self, out: Tensor, x: Tensor, route: Tensor, first: Tensor) -> None:
        """Add to `out` `[tokens, d]`, in place, what the shards in `route` make of `x` `[tokens, D]`."""
        sides, self._sides = self._sides, None
        # A GPU is not asked which ones: its launch for a shard that no token reads ends at once.
        used = route[route >= 0].unique().tolist() if route.device.type == "cpu" else range(len(self.shards))
        for number in used:
            if sides is not None:  # this pass was the one that decided: what it computed for that is the answer
                here = (route == number)[:, None]
                out.copy_(torch.where(here, (out.float() + sides[number]).to(out.dtype), out))
            else:
                delta, here = self.shards[number].delta, torch.where(route == number, 0, -1)
                ops.masked_linear_(out, x, delta, self._everything, here.int())

    def state(self) -> dict[str, Tensor]:
        """The shards' matrices, and a row of number, minimum, first and last edit, and merged for each."""
        rows = [[s.number, s.minimum.item(), s.first, s.end, s.merged] for s in self.shards]
        deltas = {f"memory.delta.{place}": shard.delta for place, shard in enumerate(self.shards)}
        return {**deltas, "memory.shards": torch.tensor(rows, dtype=torch.float64, device="cpu")}

    def norms(self) -> dict[str, float]:
        return matrix_norms([shard.delta for shard in self.shards if shard.edits])
