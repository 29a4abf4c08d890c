"""Routes by stored keys: the request's own key, a layer's features at its last token, lies near one of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels import ops
from ..edits.edit import Edit
from ..profiling import scope
from .context import RoutingContext
from .router import EditRouter

_GAP = 1e-5
"""By how much the older of two parted radii is the smaller, as published."""


class KeyRouter(EditRouter):
    """What routers have that find an edit by a key within some radius, by Euclidean distance.

    The fingerprint of an edit is its key `[D]` and its label, one float each, by their bits. A score is
    1 / (1 + distance / radius): .5 at the radius. What is stored is a function of all keys in their order.
    """

    needs_features = True

    def __init__(self, width: int, radius: float, device: torch.device | str = "cpu") -> None:
        super().__init__(0.5, 0.5, 0.5, 0.0, device)
        self.width = width
        self.radius = radius

    def fingerprints_of(self, prompts: Tensor, edits: Sequence[Edit] | None = None) -> list[Tensor]:
        """Of keys and labels `[edits, D + 1]`."""
        return list(prompts.float().contiguous().cpu().view(torch.int32))

    def fact_of(self, fingerprint: Tensor) -> tuple[int, ...]:
        return tuple(fingerprint[:-1].tolist())

    def fits(self, fingerprint: Tensor) -> bool:
        return fingerprint.shape == (self.width + 1,) and bool(fingerprint.view(torch.float32).isfinite().all())

    def rows_of(self, fingerprints: Sequence[Tensor]) -> Tensor:
        return torch.stack([fingerprint[: self.width] for fingerprint in fingerprints]).to(self.device)

    def remove(self, edits: set[int]) -> None:
        if edits:
            raise NotImplementedError("what is stored depends on all keys in their order: reset, and add what is left")

    def from_features(self, pooled: Tensor) -> Tensor:
        return pooled.float()

    def queries(self, requests: Tensor) -> Tensor:
        return requests.float()

    def nearest_stored(self, fingerprints: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        return self.nearest(self.rows_of(fingerprints).view(torch.float32))

    def nearest_withdrawn(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        row, distance, _ = ops.nearest_key(queries, self.withdrawn.rows.view(torch.float32))
        return row, score_of(distance, torch.full_like(distance, self.radius))

    def see(self, features: Tensor, context: RoutingContext, each: bool) -> None:
        """Take in a pass: decide what holds prompts; with `each`, let every generated token find an edit too."""
        prompts = context.deciding
        if context.active and prompts:
            self.observe(features, context)
        if context.active and each:
            self.route_each(features, context, prompts)

    def observe(self, features: Tensor, context: RoutingContext) -> None:
        """Decide the routes of a pass that holds whole prompts, by `features` `[..., D]` at their last tokens."""
        with scope("edit: route"):
            rows = features.reshape(-1, self.width)
            decision = self.decide(rows.index_select(0, context.last_tokens()))
            context.routes.copy_(decision.route)
        context.decision = decision
        context.deciding = False  # once a prompt, whatever else passes under the same description

    def route_each(self, features: Tensor, context: RoutingContext, prompts: bool) -> None:
        """Let every generated token of `features` `[..., D]` find an edit of its own anew, as published.

        prompts: whether the pass holds prompts; up to their last tokens what `observe` decided stays.
        """
        found, score, _ = self.nearest(self.queries(features.reshape(-1, self.width)))
        each = torch.where(score >= self.threshold, found, -1)
        if prompts:
            slot = context.slot[: len(each)].long()
            last = torch.cat([torch.zeros(1, dtype=torch.int64, device=slot.device), context.last_tokens()])
            in_prompt = torch.arange(len(each), dtype=torch.int64, device=slot.device) <= last[slot]
            each = torch.where(in_prompt, context.route.index_select(0, slot), each)
        context.each = each

    def ground(self) -> dict[str, Tensor]:
        return {}

    def load_ground(self, tensors: dict[str, Tensor]) -> None:
        self.reset()


class Reach(NamedTuple):
    """Where a new key would come to lie: the row it joins, or -1; the row it takes from, or -1; its distance to it."""

    joins: int
    parts: int
    distance: float


class NearestKeyRouter(KeyRouter):
    """The codebook of GRACE (arXiv 2211.11031): an edit is found within the radius of the nearest stored key.

    A key is the layer's input at the last token of a prompt. A new one opens a row of its own, of the radius `radius`,
    where the nearest is further than that one's radius and its own; of the same label as the nearest it joins that row,
    whose radius grows to hold it; of another label the distance is parted between both. What a row says is the last
    edit that joined it.
    """

    def __init__(self, width: int, radius: float, device: torch.device | str = "cpu") -> None:
        super().__init__(width, radius, device)
        self.rows = 0
        self.row_of: list[int] = []
        """By edit: the row that holds its key."""
        self._keys = torch.zeros(64, width, dtype=torch.float32, device=self.device)
        self._radii = torch.zeros(64, dtype=torch.float32, device=self.device)
        self._labels = torch.zeros(64, dtype=torch.float32, device=self.device)
        self._edits = torch.full((64,), -1, dtype=torch.int32, device=self.device)

    # Edits

    def add_fingerprints(self, fingerprints: Sequence[Tensor]) -> None:
        if self._views:  # they read radii and edits of rows that change here
            self._radii, self._edits, self.row_of = self._radii.clone(), self._edits.clone(), list(self.row_of)
        for fingerprint in fingerprints:
            said = fingerprint.view(torch.float32)
            self._insert(said[: self.width].to(self.device), float(said[self.width]))

    def reach(self, key: Tensor, label: float) -> Reach:
        """Where a new key `[D]` with this label would come to lie among the rows."""
        if not self.rows:
            return Reach(-1, -1, 0.0)
        row, distance = (part.item() for part in self._nearest_row(key[None])[:2])
        if distance > self.radius + float(self._radii[row]):
            return Reach(-1, -1, distance)
        return Reach(row, -1, distance) if float(self._labels[row]) == label else Reach(-1, row, distance)

    def _insert(self, key: Tensor, label: float) -> None:
        found = self.reach(key, label)
        row = found.joins
        if row >= 0:
            self._radii[row] = max(float(self._radii[row]), found.distance)
        else:
            row, radius = self.rows, self.radius
            self.reserve(row + 1)
            if found.parts >= 0:
                radius = found.distance / 2
                self._radii[found.parts] = radius - _GAP
            self._keys[row], self._radii[row], self._labels[row] = key, radius, label
            self.rows += 1
            self._count.fill_(self.rows)
        self._edits[row] = self.size
        self.row_of.append(row)
        self.size += 1

    def edit_of(self, row: int) -> int:
        """The edit, by its place, that joined a row last: what the row says."""
        return int(self._edits[row])

    def reserve(self, edits: int, tokens: int = 0) -> None:
        before = len(self._radii)
        if edits > before:
            more = max(edits, 2 * before) - before
            self._keys = torch.cat([self._keys, self._keys.new_zeros(more, self.width)])
            self._radii = torch.cat([self._radii, self._radii.new_zeros(more)])
            self._labels = torch.cat([self._labels, self._labels.new_zeros(more)])
            self._edits = torch.cat([self._edits, self._edits.new_full((more,), -1)])

    def reset(self) -> None:
        """Forget every edit: which rows others opened, joined or parted is not known of what is left."""
        if self._views:
            for name in ("_keys", "_radii", "_labels", "_edits"):
                setattr(self, name, getattr(self, name).clone())
        self.size = self.rows = 0
        self.row_of = []
        self._count.zero_()
        self.withdrawn = None

    # Requests

    def _nearest_row(self, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """int32 row of each query's nearest, its distance fp32, and the row again where it is within its radius."""
        return ops.nearest_key(queries.to(self._keys), self._keys, self._radii, False, self._count)

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The edit of the nearest row, and its score; the second best is not looked for: 0."""
        row, distance, _ = self._nearest_row(queries)
        none = torch.zeros_like(distance)
        if not self.rows:
            return row, none, none
        row = row.clamp(min=0)
        return self._edits[row], score_of(distance, self._radii[row]), none

    def scores(self, queries: Tensor) -> Tensor:
        rows = torch.tensor(self.row_of, dtype=torch.int64, device=self.device)
        apart = distances(queries.to(self._keys), self._keys[: self.rows])[0]
        return score_of(apart, self._radii[: self.rows])[rows].cpu()

    def state(self) -> dict[str, Tensor]:
        return {
            "router.keys": self._keys[: self.rows].clone(),
            "router.radii": self._radii[: self.rows].clone(),
            "router.labels": self._labels[: self.rows].clone(),
            "router.edits": self._edits[: self.rows].clone(),
        }


def score_of(distance: Tensor, radius: Tensor) -> Tensor:
    """fp32: 1 / (1 + distance / radius), .5 at the radius; 0 of a radius below 0, as of a key parted from its like."""
    return torch.where(radius >= 0, radius / (radius + distance), 0.0).nan_to_num_(1.0)


def distances(queries: Tensor, keys: Tensor) -> Tensor:
    """fp32 `[queries, keys]`. From differences: a key that is asked for itself is at 0, to the bit."""
    return torch.cdist(queries, keys, compute_mode="donot_use_mm_for_euclid_dist")
