"""Routes by features: the overlap of top-k activation masks (TopHash of MEMOIR, arXiv 2506.07899, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels import ops
from ...kernels.reference import unpack_mask
from ..edits.edit import Edit
from ..errors import CorrigendaError
from ..profiling import scope
from .context import RoutingContext
from .router import Decision, EditRouter


class MaskRouter(EditRouter):
    """A prompt's fingerprint is the mask of its k strongest features; the stored mask with most of them in common wins.

    Features are the input of a layer's down-projection, averaged over the prompt and taken less the mean over
    background prompts. Indices pass through one fixed permutation, so that a mask also serves as storage address.
    """

    needs_features = True

    def __init__(
        self,
        width: int,
        top_k: int,
        *,
        seed: int = 42,
        threshold: float | str = "auto",
        floor: float = 0.40,
        rival_weight: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(threshold, floor, math.inf, rival_weight, device)
        self.width = width
        self.top_k = top_k
        generator = torch.Generator().manual_seed(seed)
        self.permutation = torch.randperm(width, generator=generator, dtype=torch.int64, device="cpu").to(self.device)
        self.background = torch.zeros(width, dtype=torch.float32, device=self.device)
        words = (width + 31) // 32
        self._background_masks = torch.zeros(0, words, dtype=torch.int32, device=self.device)
        self._masks = torch.zeros(64, words, dtype=torch.int32, device=self.device)
        self._minimum: tuple[float, Tensor] | None = None  # of the threshold: the same as a count, on the device

    @property
    def masks(self) -> Tensor:
        """int32 `[edits, D/32]`: the stored masks, one bit a feature."""
        return self._masks[: self.size]

    @property
    def bank(self) -> Tensor:
        """The same with spare rows at the end: what ops that index by edit read, at an address that seldom changes."""
        return self._masks

    def unpack(self, masks: Tensor) -> Tensor:
        """float `[rows, D]` of 0 and 1."""
        return unpack_mask(masks, self.width).float()

    def from_features(self, pooled: Tensor) -> Tensor:
        return self.mask(pooled)

    def set_background(self, pooled: Tensor, averaged: int | None = None) -> None:
        self.background = pooled[:averaged].float().mean(0).to(self.device)
        self._background_masks = self.mask(pooled.to(self.device))
        self._threshold = None

    def mask(self, features: Tensor, offsets: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
        """int32 `[rows, D/32]`: fingerprints of features `[tokens, D]`; without offsets each row is pooled already."""
        if offsets is None:
            offsets = torch.arange(len(features) + 1, dtype=torch.int32, device=features.device)
        return ops.topk_mask(features, offsets, self.top_k, weight, self.background, self.permutation)

    def fits(self, fingerprint: Tensor) -> bool:
        return fingerprint.shape == self._masks.shape[1:]

    def rows_of(self, fingerprints: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(fingerprints)).to(self.device)

    def fingerprints_of(self, prompts: Tensor, edits: Sequence[Edit] | None = None) -> list[Tensor]:
        return list(prompts)

    def add_fingerprints(self, fingerprints: Sequence[Tensor]) -> None:
        needed = self.size + len(fingerprints)
        self.reserve(needed)
        if len(fingerprints):
            self._masks[self.size : needed] = self.rows_of(fingerprints)
        self.size = needed
        self._count.fill_(needed)
        self._threshold = None

    def reserve(self, edits: int, tokens: int = 0) -> None:
        if edits > len(self._masks):
            grown = self._masks.new_zeros(max(edits, 2 * len(self._masks)), self._masks.shape[1])
            grown[: self.size] = self.masks
            self._masks = grown

    def remove(self, edits: set[int]) -> None:
        kept = self.masks[[edit for edit in range(self.size) if edit not in edits]].clone()
        if self._views:
            self._masks = torch.zeros_like(self._masks)
        self.size = 0
        self.add(kept)
        self.withdrawn = None

    def _background_scores(self) -> Tensor:
        _, score, runner_up = self.nearest(self._background_masks)
        return score - self.rival_weight * runner_up

    def queries(self, requests: Tensor) -> Tensor:
        return requests

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each fingerprint `[rows, D/32]`; the second best's score is not looked for: 0."""
        index, overlap = ops.mask_overlap(queries, self._masks, self._count)
        score = overlap.float() / self.top_k
        return index, score, torch.zeros_like(score)

    def nearest_stored(self, fingerprints: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        return self.nearest(self.rows_of(fingerprints))

    def scores(self, queries: Tensor) -> Tensor:
        (mask,) = queries
        return unpack_mask(self.masks & mask, self.width).sum(1).float().cpu() / self.top_k

    def nearest_withdrawn(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        index, overlap = ops.mask_overlap(queries, self.withdrawn.rows)
        return index, overlap.float() / self.top_k

    def observe(self, features: Tensor, context: RoutingContext) -> None:
        """Decide the routes of a pass that holds whole prompts: `features` `[..., D]` as the tapped layer sees them."""
        rows = features.reshape(-1, self.width)
        prompts = context.offsets, context.weight[: len(rows)]
        with scope("edit: route"):
            if self.withdrawn is None:
                decision = self._route(rows, *prompts)
            else:  # which are asked by the same fingerprints
                decision = self.decide(self.mask(rows, *prompts))
            context.routes.copy_(decision.route)
        context.decision = decision
        context.deciding = False  # once a prompt, whatever else passes under the same description

    def _route(self, features: Tensor, offsets: Tensor, weight: Tensor) -> Decision:
        """`decide` of the fingerprints of packed prompts, in one op."""
        threshold = self.threshold
        if self._minimum is None or self._minimum[0] != threshold:
            below = torch.arange(self.top_k + 1, dtype=torch.float32, device="cpu") / self.top_k - threshold < 0
            self._minimum = threshold, below.sum(0, keepdim=True).int().to(features.device)
        settings = self.top_k, weight, self.background, self.permutation
        stored = self._masks, self._minimum[1], self._count
        nearest, overlap, route = ops.mask_route(features, offsets, *settings, *stored)
        score = overlap.float() / self.top_k
        none = torch.full_like(nearest, -1)
        return Decision(
            route, nearest, score, torch.zeros_like(score), score - threshold, none, torch.zeros_like(nearest)
        )

    def ground(self) -> dict[str, Tensor]:
        return {
            "router.background": self.background,
            "router.background_masks": self._background_masks,
            "router.permutation": self.permutation,
        }

    def load_ground(self, tensors: dict[str, Tensor]) -> None:
        if sorted(tensors["router.permutation"].tolist()) != list(range(self.width)):
            raise CorrigendaError("its permutation is not one of the layer's features")
        self.background = tensors["router.background"].to(self.background)
        self.permutation = tensors["router.permutation"].to(self.permutation)
        self._background_masks = tensors["router.background_masks"].to(self._background_masks)
        self.size = 0
        self.add(self._masks[:0])
        self.withdrawn = None

    def state(self) -> dict[str, Tensor]:
        return {"router.masks": self.masks.clone(), **self.ground()}
