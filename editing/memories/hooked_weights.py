"""CoachHooK's memory: changed weights whose output a token takes only where it stands out in its sequence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from ..backbone.hooked import hooked
from ..routers.context import RoutingContext
from .weight_changes import WeightChanges

_ROUNDING = 1e-4
"""By so much less than the threshold, relative, a change may stand out: it was measured by other sums than now."""


class Spread(NamedTuple):
    """Mean and unbiased deviation `[sequences]` of how far a change moves the tokens of a sequence; of one, none."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, distance: Tensor, sequence: Tensor, counted: Tensor, sequences: int) -> Spread:
        """distance fp32 `[tokens]`, sequence int `[tokens]`, counted bool `[tokens]`."""
        sequence, share = sequence.long(), counted.float()
        number = share.new_zeros(sequences).index_add_(0, sequence, share)
        mean = share.new_zeros(sequences).index_add_(0, sequence, distance * share) / number
        apart = (distance - mean[sequence]).square() * share
        return cls(mean, (share.new_zeros(sequences).index_add_(0, sequence, apart) / (number - 1)).sqrt())

    def score(self, distance: Tensor, sequence: Tensor) -> Tensor:
        """By how many deviations each token stands above its sequence's mean; 0 where there is no deviation."""
        mean, deviation = self.mean[sequence.long()], self.deviation[sequence.long()]
        return torch.where(deviation > 0, (distance - mean) / deviation, 0.0)  # of NaN, every comparison is false


def answers(ratios: Tensor) -> Tensor:
    """Where what stands out by these shares of the threshold does so enough."""
    return ratios >= 1 - _ROUNDING


def largest(values: Tensor, sequence: Tensor, sequences: int) -> Tensor:
    """The largest value of each sequence's tokens, `[sequences]`, of values from 0 on."""
    return values.new_zeros(sequences).scatter_reduce_(0, sequence.long(), values, "amax")


class HookedChange(NamedTuple):
    """One layer's change in the pass that it was observed in: `side` `[tokens, d]`, where `fires` bool `[tokens]`."""

    side: Tensor | None
    fires: Tensor | None

    def read_(self, out: Tensor, x: Tensor, route: Tensor, first: Tensor) -> None:
        """Add the change to `out` `[tokens, d]`, in place, where it stands out on a token that has a route."""
        if self.side is not None:
            here = (self.fires & (route >= 0))[:, None]
            out.copy_(torch.where(here, (out.float() + self.side).to(out.dtype), out))


class HookedWeights(WeightChanges):
    """Changes of layers in order, each with the threshold from which its output is taken (by its site).

    published: the mean and deviation are of all tokens that a pass has of a sequence, padding too; else its prompt's,
    found once and kept with the sequence.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, int]], devices: Mapping[str, torch.device], alpha: float, published: bool
    ) -> None:
        super().__init__(shapes, devices)
        self.alpha = alpha
        self.published = published
        self.thresholds = dict.fromkeys(shapes, alpha)
        self._forget()

    def _forget(self) -> None:
        """Know nothing of any pass."""
        self._seen: dict[str, tuple[Spread, Tensor]] = {}
        self._parts: dict[str, HookedChange] = {}
        self._best: Tensor | None = None

    def part(self, site: str) -> HookedChange:  # type: ignore[override] # what was observed of it
        return self._parts.pop(site, HookedChange(None, None))

    def view(self) -> Self:
        view = super().view()
        view.thresholds = dict(self.thresholds)
        view._forget()
        return view

    def reset(self) -> None:
        super().reset()
        self.thresholds = dict.fromkeys(self.thresholds, self.alpha)

    def ratios(self, site: str, distance: Tensor, sequence: Tensor, spread: Spread) -> Tensor:
        """fp32 `[tokens]`: by how much each token stands out, as a share of what it takes to be answered."""
        return spread.score(distance, sequence) / self.thresholds[site]

    def observe(self, site: str, x: Tensor, context: RoutingContext) -> Tensor | None:
        """Find where a layer's change stands out in a pass, before the layer's output is asked for.

        A layer whose change stands out at no token of a prompt leaves the whole sequence alone; where none does, the
        sequence is nobody's. Where whole prompts pass, the last layer gives fp32 `[sequences]`: the most by
        which each stood out, in any layer, as a share of what it takes.
        """
        x = x.reshape(-1, x.shape[-1]).float()
        side = x @ self.matrices[site]
        distance, sequence = side.norm(dim=1), context.slot[: len(x)]
        sequences, prompt = len(context.route), context.weight[: len(x)] > 0
        if self.published:
            whole = Spread.of(distance, sequence, torch.ones_like(prompt), sequences)
            fires = answers(self.ratios(site, distance, sequence, whole))
            self._parts[site] = HookedChange(side, fires)
            return torch.ones_like(whole.mean) if context.deciding else None
        if context.deciding:
            spread = Spread.of(distance, sequence, prompt, sequences)
            ratios = self.ratios(site, distance, sequence, spread)
            most = largest(torch.where(prompt, ratios, 0.0), sequence, sequences)
            self._seen[site] = spread, answers(most)
            self._best = most if site == next(iter(self.matrices)) or self._best is None else most.maximum(self._best)
        spread, stood_out = self._seen[site]
        fires = answers(self.ratios(site, distance, sequence, spread)) & stood_out[sequence.long()]
        self._parts[site] = HookedChange(side, fires)
        return self._best if context.deciding and site == next(reversed(self.matrices)) else None

    # While edits are solved: whole rows of one length, so that nothing is padding

    @contextmanager
    def standing_out(self, modules: Mapping[str, nn.Module], always: set[str]) -> Iterator[None]:
        """Within: passes are through the hooks, those of `always` whatever stands out; it may change meanwhile."""

        def hook(site: str, x: Tensor, out: Tensor) -> Tensor:
            side = x.to(torch.float32) @ self.matrices[site]
            if site in always:
                return out + side.to(out.dtype)
            distance = side.norm(dim=-1)
            # As torch has it, of a row of one token there is no deviation.
            deviation = (
                distance.std(-1, keepdim=True) if distance.shape[-1] > 1 else torch.full_like(distance, torch.nan)
            )
            score = torch.where(deviation > 0, (distance - distance.mean(-1, keepdim=True)) / deviation, 0.0)
            fires = (score >= self.thresholds[site])[..., None]
            return torch.where(fires, out + side.to(out.dtype), out)

        with hooked(modules, hook):
            yield

    def state(self) -> dict[str, Tensor]:
        thresholds = torch.tensor(list(self.thresholds.values()), dtype=torch.float64, device="cpu")
        return {**super().state(), "memory.thresholds": thresholds}
