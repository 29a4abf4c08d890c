"""WISE's memories: residual matrices beside the layer, and the rule by which a prompt is answered from one of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import ops
from .context import RoutingContext
from .merging import merge
from .routing import Decision


@dataclass
class Shard:
    """One side memory: what it adds to the frozen weight, for the edits `first` to `end` of the stream.

    delta    fp32 `[D, d]`, the difference to the frozen weight, transposed
    minimum  fp32 `[]`, the smallest distance at which an edit of it was left by its writing; infinite without edits
    merged   whether it was made of others
    """

    delta: Tensor
    minimum: Tensor
    first: int
    end: int
    merged: bool = False


class SideMemories:
    """Shards of which the last is being written, and the router among them.

    A sequence is answered by the finished shard that moves the layer's output furthest, over its own threshold and
    further than the last shard does; else by the last shard over its threshold; else by the frozen layer alone. The
    threshold is `act_ratio` times the shard's minimum; `shared_minimum`: times the smallest of all (WISE-Merge).
    """

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
        self.act_ratio = act_ratio
        self.activated = activated
        self.longest = longest
        self.shared_minimum = shared_minimum
        self._everything = torch.full((1, (width + 31) // 32), -1, dtype=torch.int32, device=device)
        if width % 32:
            self._everything[0, -1] = (1 << width % 32) - 1
        self._sides: list[Tensor] | None = None
        nothing = torch.zeros(width, out_width, device=device)
        self.shards = [Shard(nothing, torch.tensor(torch.inf, device=device), 0, 0)]

    @property
    def current(self) -> Shard:
        """The shard that is being written."""
        return self.shards[-1]

    @property
    def finished(self) -> list[Shard]:
        return self.shards[:-1]

    def finish(self) -> None:
        """Close the current shard and open an empty one."""
        last, nothing = self.current, torch.zeros_like(self.current.delta)
        self.shards.append(Shard(nothing, torch.full_like(last.minimum, torch.inf), last.end, last.end))

    def merge(self, count: int, weights: list[float], kind: str, density: float, seed: int) -> None:
        """Make one shard of the last `count` finished ones; it takes the place of the first of them."""
        old = self.finished[len(self.finished) - count :]
        delta = merge(kind, [shard.delta for shard in old], weights, density, seed)
        minimum = torch.stack([shard.minimum for shard in old]).amin()
        self.shards[-1 - count : -1] = [Shard(delta, minimum, old[0].first, old[-1].end, merged=True)]

    @property
    def thresholds(self) -> Tensor:
        """fp32 `[shards]`: the distance from which a prompt is a shard's."""
        minima = torch.stack([shard.minimum for shard in self.shards])
        if self.shared_minimum:
            minima = minima.amin().expand(len(self.shards))
        return self.act_ratio * minima

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
        return Decision(route.int(), nearest.int(), distance.gather(0, nearest[None])[0], second)

    def observe(self, x: Tensor, base: Tensor, context: RoutingContext) -> None:
        """Decide the routes of a pass that holds whole prompts: the layer's input `[..., D]` and its own output."""
        x, base = x.reshape(-1, x.shape[-1]), base.reshape(-1, base.shape[-1])
        length = len(x) // context.slots
        offsets = torch.arange(context.slots + 1, dtype=torch.int32, device=x.device) * length
        weight = context.weight[: len(x)]
        seen = [
            ops.delta_linear(x, base, shard.delta, offsets, weight, self.activated, self.longest)
            for shard in self.shards
        ]
        decision = self.decide(torch.stack([distance for _, _, distance in seen]))
        context.route[: context.slots].copy_(decision.route)
        context.decision = decision
        self._sides = [side for side, _, _ in seen]

    def read_(self, out: Tensor, x: Tensor, route: Tensor, first: Tensor) -> None:
        """Add to `out` `[tokens, d]`, in place, what the shards in `route` make of `x` `[tokens, D]`."""
        sides, self._sides = self._sides, None
        for number, shard in enumerate(self.shards):
            if sides is not None:  # this pass was the one that decided: what it computed for that is the answer
                here = (route == number)[:, None]
                out.copy_(torch.where(here, (out.float() + sides[number]).to(out.dtype), out))
            else:
                ops.masked_linear_(out, x, shard.delta, self._everything, torch.where(route == number, 0, -1).int())

    def state(self) -> dict[str, Tensor]:
        """The shards' matrices, and a row of minimum, first and last edit, and merged for each."""
        rows = [[shard.minimum.item(), shard.first, shard.end, shard.merged] for shard in self.shards]
        deltas = {f"memory.delta.{number}": shard.delta for number, shard in enumerate(self.shards)}
        return {**deltas, "memory.shards": torch.tensor(rows, dtype=torch.float64)}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        empty = self.current
        self.shards = []
        for number, (minimum, first, end, merged) in enumerate(tensors["memory.shards"].tolist()):
            delta = torch.zeros_like(empty.delta).copy_(tensors[f"memory.delta.{number}"])
            minimum = torch.full_like(empty.minimum, minimum)
            self.shards.append(Shard(delta, minimum, int(first), int(end), bool(merged)))
