"""Routes by clusters of keys: the index of MELO (arXiv 2312.11795)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...kernels import ops
from .nearest import KeyRouter, distances, score_of

_GAP = 1e-5
"""By how much two parted radii fall short of the distance between their centres and go beyond it, as published."""

_NO_EDIT = -1


@dataclass
class Cluster:
    """Keys of one label: their mean, how far it reaches, and the members, each a key `[D]` with its edit's place."""

    center: Tensor
    radius: float
    label: float
    members: list[tuple[Tensor, int]] = field(default_factory=list)


class ClusterRouter(KeyRouter):
    """A request belongs to the cluster whose centre is nearest, if that is within its radius, and there to the edit of
    the nearest member.

    The edits of a batch (one call) are compared with the clusters as they were before it. A key further from the
    nearest centre than that one's radius and a new one's opens a cluster, as every key of the first batch does; of the
    same label it joins, and the centre moves to the mean; of another label it opens a cluster and the distance is
    parted: members of the older one that are then outside are forgotten, and where none is left, its centre stands for
    no edit.
    """

    def __init__(self, width: int, radius: float, device: torch.device | str = "cpu") -> None:
        super().__init__(width, radius, device)
        self.clusters: list[Cluster] = []
        self._stale = True

    # Edits

    def add_fingerprints(self, fingerprints: Sequence[Tensor]) -> None:
        said = [fingerprint.view(torch.float32).cpu() for fingerprint in fingerprints]
        keys = [one[: self.width] for one in said]
        before = [(cluster, cluster.center) for cluster in self.clusters]
        centers = torch.stack([center for _, center in before]) if before else None
        for key, one in zip(keys, said):
            label, found = float(one[self.width]), None
            if centers is not None:
                distance, nearest = (part.item() for part in distances(key[None], centers)[0].min(0))
                found = before[int(nearest)][0]
            if found is None or distance > found.radius + self.radius:
                self.clusters.append(Cluster(key, self.radius, label, [(key, self.size)]))
            elif found.label == label:
                found.members.append((key, self.size))
                own = torch.stack([member for member, _ in found.members])
                found.center = own.mean(0)
                found.radius = max(self.radius, float(distances(found.center[None], own).max()))
            else:
                self.clusters.append(Cluster(key, distance / 2 + _GAP, label, [(key, self.size)]))
                self._part(found, distance / 2 - _GAP)
            self.size += 1
        self._stale = True

    def _part(self, cluster: Cluster, radius: float) -> None:
        cluster.radius = radius
        center = cluster.center[None]
        inside = [member for member in cluster.members if float(distances(center, member[0][None])) <= radius]
        cluster.members = inside or [(cluster.center, _NO_EDIT)]

    def reset(self) -> None:
        self.size, self.clusters, self._stale, self.withdrawn = 0, [], True, None

    def reserve(self, edits: int, tokens: int = 0) -> None:
        """Nothing: what is compared with is laid out anew when edits have come."""

    def _prepare(self) -> None:
        """Lay out the clusters for requests: what a view has taken stays as it is."""
        if not self._stale:
            return
        self._stale = False
        members = [(key, edit, c) for c, cluster in enumerate(self.clusters) for key, edit in cluster.members]
        empty = torch.zeros(0, self.width, dtype=torch.float32, device="cpu")
        centers = torch.cat([empty, *(cluster.center[None] for cluster in self.clusters)])
        keys = torch.cat([empty, *(key[None] for key, *_ in members)])
        radii = torch.tensor([cluster.radius for cluster in self.clusters], dtype=torch.float32, device="cpu")
        edits = torch.tensor([edit for _, edit, _ in members], dtype=torch.int32, device="cpu")
        owners = torch.tensor([c for *_, c in members], dtype=torch.int32, device="cpu")
        self._laid_out = tuple(part.to(self.device) for part in (centers, radii, keys, edits, owners))

    # Requests

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The edit of the nearest member in the nearest cluster, and that cluster's score; no second best: 0."""
        self._prepare()
        centers, radii, keys, edits, owners = self._laid_out
        none = torch.zeros(len(queries), dtype=torch.float32, device=self.device)
        if not len(centers):
            return torch.full_like(none, -1, dtype=torch.int32), none, none
        queries = queries.to(keys)
        cluster, distance, _ = ops.nearest_key(queries, centers, radii)
        member, _, _ = ops.nearest_key(queries, keys, None, False, None, cluster, owners)
        return edits[member.clamp(min=0)], score_of(distance, radii[cluster.clamp(min=0)]), none

    def scores(self, queries: Tensor) -> Tensor:
        self._prepare()
        centers, radii, _, edits, owners = self._laid_out
        found = torch.zeros(self.size, dtype=torch.float32, device="cpu")
        own = score_of(distances(queries.to(centers), centers)[0], radii)[owners.long()].cpu()
        known = edits.cpu() >= 0
        found[edits.cpu()[known].long()] = own[known]
        return found

    def state(self) -> dict[str, Tensor]:
        self._prepare()
        centers, radii, keys, edits, owners = self._laid_out
        labels = torch.tensor([cluster.label for cluster in self.clusters], dtype=torch.float32, device="cpu")
        return {
            **{"router.centers": centers, "router.radii": radii, "router.labels": labels},
            **{"router.keys": keys, "router.edits": edits, "router.owners": owners},
        }
