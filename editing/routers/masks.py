"""Routes by features: the overlap of top-k activation masks (TopHash of MEMOIR, arXiv 2506.07899, section 3.2)."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels import ops
from ...kernels.reference import unpack_mask
from ..errors import CorrigendaError
from ..profiling import scope
from .context import RoutingContext
from .router import Decision, EditRouter, calibrated, decide


class MaskRouter(EditRouter):
    """A prompt's fingerprint is the mask of its k strongest features; the stored mask with most of them in common wins.

    Features are the input of a layer's down-projection, averaged over the prompt and taken less the mean over
    background prompts. Indices pass through one fixed permutation, so that a mask also serves as storage address.
    """

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
        self.width = width
        self.top_k = top_k
        self.rival_weight = rival_weight
        self.device = torch.device(device)
        self._asked = threshold
        self._floor = floor
        generator = torch.Generator().manual_seed(seed)
        self.permutation = torch.randperm(width, generator=generator, dtype=torch.int64, device="cpu").to(self.device)
        self.background = torch.zeros(width, dtype=torch.float32, device=self.device)
        words = (width + 31) // 32
        self._background_masks = torch.zeros(0, words, dtype=torch.int32, device=self.device)
        self._masks = torch.zeros(64, words, dtype=torch.int32, device=self.device)
        self._count = torch.zeros(1, dtype=torch.int32, device=self.device)
        self.size = 0
        self._threshold: float | None = None
        self._minimum: tuple[float, Tensor] | None = None  # of the threshold: the same as a count, on the device
        self._views: weakref.WeakSet[MaskRouter] = weakref.WeakSet()

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

    def set_background(self, pooled: Tensor, averaged: int | None = None) -> None:
        """Learn the background from pooled features `[prompts, D]`.

        The mean of the first `averaged` is what fingerprints are taken from; the masks of all serve calibration.
        """
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

    def add(self, masks: Tensor) -> None:
        """Store the masks of new edits, in order."""
        needed = self.size + len(masks)
        self.reserve(needed)
        self._masks[self.size : needed] = masks.to(self.device)
        self.size = needed
        self._count.fill_(needed)
        self._threshold = None

    def reserve(self, edits: int) -> None:
        """Room for this many edits: until it is used up, the buffers keep their addresses."""
        if edits > len(self._masks):
            grown = self._masks.new_zeros(max(edits, 2 * len(self._masks)), self._masks.shape[1])
            grown[: self.size] = self.masks
            self._masks = grown

    def remove(self, edits: set[int]) -> None:
        """Forget these edits; the others move up."""
        kept = self.masks[[edit for edit in range(self.size) if edit not in edits]].clone()
        if self._views:
            self._masks = torch.zeros_like(self._masks)
        self.size = 0
        self.add(kept)
        self.withdrawn = None

    def view(self) -> MaskRouter:
        """The router as it is now, for a reader: edits that are stored or removed later do not show there."""
        view = copy.copy(self)
        view._count = self._count.clone()
        self._views.add(view)
        return view

    @property
    def threshold(self) -> float:
        """The overlap, as a share of k, from which a prompt counts as an edit's; calibrated when first asked for."""
        if self._threshold is None:
            self._threshold = self._floor
            if self._asked != "auto":
                self._threshold = float(self._asked)
            elif self.size and len(self._background_masks):
                self._threshold = calibrated(self.nearest(self._background_masks)[1], self._floor)
        return self._threshold

    def nearest(self, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Best stored edit for each fingerprint `[rows, D/32]`, its score, and 0 for the second best's."""
        index, overlap = ops.mask_overlap(masks, self._masks, self._count)
        score = overlap.float() / self.top_k
        return index, score, torch.zeros_like(score)

    def scores(self, masks: Tensor) -> Tensor:
        """Every stored edit's score for one fingerprint, `[edits]`."""
        (mask,) = masks
        return unpack_mask(self.masks & mask, self.width).sum(1).float().cpu() / self.top_k

    def decide(self, masks: Tensor) -> Decision:
        """The edit that each fingerprint `[rows, D/32]` belongs to."""
        decision = decide(*self.nearest(masks), self.threshold, self.rival_weight)
        if self.withdrawn is None:
            return decision
        return self.withdrawn.hold_back(decision, *self.nearest_withdrawn(masks))

    def nearest_withdrawn(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        index, overlap = ops.mask_overlap(masks, self.withdrawn.rows)
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
        return Decision(route, nearest, score, torch.zeros_like(score), score - threshold, none)

    def ground(self) -> dict[str, Tensor]:
        """What decisions depend on besides the stored edits."""
        return {
            "router.background": self.background,
            "router.background_masks": self._background_masks,
            "router.permutation": self.permutation,
        }

    def load_ground(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `ground` gave; edits that are stored are forgotten."""
        if sorted(tensors["router.permutation"].tolist()) != list(range(self.width)):
            raise CorrigendaError("its permutation is not one of the layer's features")
        self.background = tensors["router.background"].to(self.background)
        self.permutation = tensors["router.permutation"].to(self.permutation)
        self._background_masks = tensors["router.background_masks"].to(self._background_masks)
        self.size = 0
        self.add(self._masks[:0])
        self.withdrawn = None

    def state(self) -> dict[str, Tensor]:
        """Every tensor the decisions depend on, but the edits that were taken out."""
        return {"router.masks": self.masks.clone(), **self.ground()}
