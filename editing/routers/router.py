"""What a router decides: which stored edit, if any, a prompt is about; and which ones were taken out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from ..errors import CorrigendaError
from ..views import Viewed

if TYPE_CHECKING:
    from ..edits.edit import Edit
    from .context import RoutingContext


class Decision(NamedTuple):
    """The routers' answer for a batch of prompts, one entry each.

    route      int32: the edit to apply, -1 for none
    nearest    int32: the best-matching edit, applied or not; -1 where none is stored
    score      float32: how well it matches, 0 to 1
    runner_up  float32: the same of the second best
    margin     float32: how far the best match stands above what it takes to be applied; below 0 it was not
    withdrawn  int32: the withdrawn edit that kept the best match from being applied, by its place; -1 for none
    against    int32: what else speaks against the best match, for `EditRouter.in_words`; 0 for nothing
    """

    route: Tensor
    nearest: Tensor
    score: Tensor
    runner_up: Tensor
    margin: Tensor
    withdrawn: Tensor
    against: Tensor


def decide(nearest: Tensor, score: Tensor, runner_up: Tensor, threshold: float, rival_weight: float) -> Decision:
    """Apply the best match where it stands out: score less a share of the runner-up's reaches the threshold."""
    margin = score - rival_weight * runner_up - threshold
    route = torch.where((nearest >= 0) & (margin >= 0), nearest, -1).int()
    none = torch.full_like(nearest, -1)
    return Decision(route, nearest, score, runner_up, margin, none, torch.zeros_like(nearest))


def part_of(decision: Decision | None, rows: Sequence[int]) -> Decision | None:
    """What was decided of some of the prompts, by their places; None of None."""
    return None if decision is None else Decision(*(part[list(rows)] for part in decision))


class Withdrawn(NamedTuple):
    """Edits that were taken out, as a router still knows them: their questions are not to get a neighbour's answer.

    Where one matches a prompt better than the best applied edit, and that was written before the undo, none is applied.
    Of several the best match counts, of equals the last undone. Better, not as well: an applied edit so keeps its own
    question, which nothing matches better.

    ids      of the edits, the last undone first
    rows     int32 `[edits, width]`: their fingerprints, as the router stores them
    undone   int64 `[edits]`: when, in whatever numbers ascend
    written  int64 `[stored + 1]`: when each stored edit was written; those that came since stand for the last, the end
    """

    ids: list[str]
    rows: Tensor
    undone: Tensor
    written: Tensor

    def hold_back(self, decision: Decision, index: Tensor, score: Tensor) -> Decision:
        """The decision with what is withdrawn unrouted; `index`, `score`: the best of these edits for each prompt."""
        written = self.written[decision.nearest.clamp(0, len(self.written) - 1).long()]
        held = (decision.route >= 0) & (score > decision.score) & (written < self.undone[index.long()])
        return decision._replace(
            route=torch.where(held, -1, decision.route),
            margin=torch.where(held, decision.score - score, decision.margin),
            withdrawn=torch.where(held, index, -1),
        )


class EditRouter(Viewed):
    """What a method, the store, `why`, a server and the model ask of a router that names edits.

    Prompts and requests come in the form that the router decides by: as text; or, where it `needs_features`, as the
    fingerprints that `observe` makes of a layer's features in a forward pass.

    threshold_setting  "auto", or the score from which a request counts as an edit's
    floor, ceiling     what "auto" stays within
    rival_weight       what share of the second best's score the best one must exceed besides
    """

    needs_features: ClassVar[bool]
    size: int = 0
    withdrawn: Withdrawn | None = None

    def __init__(
        self,
        threshold: float | str,
        floor: float,
        ceiling: float,
        rival_weight: float,
        device: torch.device | str,
    ) -> None:
        super().__init__()
        self.threshold_setting = threshold
        self.floor, self.ceiling = floor, ceiling
        self.rival_weight = rival_weight
        self.device = torch.device(device)
        self._count = torch.zeros(1, dtype=torch.int32, device=self.device)
        self._threshold: float | None = None

    @property
    def rule(self) -> str | None:
        """What this version decides by beside the edits, as a store records it; None where no version changes that."""
        return None

    # Edits

    def fingerprints_of(self, prompts: Any, edits: Sequence[Edit] | None = None) -> list[Tensor]:
        """int32 `[n]` each: what edits with these prompts are known by, as their records keep it.

        edits: the edits themselves, for a router that looks at their subjects and protected questions too.
        """
        raise NotImplementedError

    def fact_of(self, fingerprint: Tensor) -> tuple[int, ...]:
        """What of a fingerprint is alike in edits of one fact, whatever else they say."""
        return tuple(fingerprint.tolist())

    def fits(self, fingerprint: Tensor) -> bool:
        """Whether int32 `[n]` could be the fingerprint of an edit here."""
        raise NotImplementedError

    def rows_of(self, fingerprints: Sequence[Tensor]) -> Tensor:
        """Fingerprints (at least one) as they are stored, int32 `[edits, width]`."""
        raise NotImplementedError

    def add(self, prompts: Any) -> None:
        """Store edits with these prompts, in order."""
        self.add_fingerprints(self.fingerprints_of(prompts))

    def add_fingerprints(self, fingerprints: Sequence[Tensor]) -> None:
        """Store the edits that are known by these, in order."""
        raise NotImplementedError

    def remove(self, edits: set[int]) -> None:
        """Forget these edits; the others move up."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget every edit."""
        self.remove(set(range(self.size)))

    def reserve(self, edits: int, tokens: int) -> None:
        """Room for this many edits, of that many distinct prompt tokens: until it is used up, addresses stay."""
        raise NotImplementedError

    def withdraw(
        self, ids: Sequence[str], fingerprints: Sequence[Tensor], undone: Sequence[int], written: Sequence[int]
    ) -> None:
        """Know these as the edits that were taken out, and no others; `Withdrawn` says what that means.

        undone, written: when each was undone, and each stored edit written, as numbers of one order: a ledger's, say.
        Edits that are stored later count as newer than every undo. Memory, rarities and threshold do not depend on all
        this. Removing stored edits, which moves the others up, forgets it: say it again after that.
        """
        for name, fingerprint in zip(ids, fingerprints):
            if not self.fits(fingerprint):
                raise CorrigendaError(f'The fingerprint of the undone edit "{name}" is not one of this router\'s.')
        self.withdrawn = None
        if ids:
            rows = self.rows_of(fingerprints)
            since = torch.iinfo(torch.int64).max
            self.withdrawn = Withdrawn(
                list(ids),
                rows,
                torch.tensor(undone, dtype=torch.int64, device=rows.device),
                torch.tensor([*written, since], dtype=torch.int64, device=rows.device),
            )

    # Requests

    def queries(self, requests: Any) -> Any:
        """What the methods below take for these requests."""
        raise NotImplementedError

    def nearest(self, queries: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Best stored edit for each query, its score, and the second best's score."""
        raise NotImplementedError

    def nearest_stored(self, fingerprints: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The same for edits that are known by these."""
        raise NotImplementedError

    def nearest_withdrawn(self, queries: Any) -> tuple[Tensor, Tensor]:
        """Of the withdrawn edits, of which there are some, the best for each query, and its score."""
        raise NotImplementedError

    def scores(self, queries: Any) -> Tensor:
        """Every stored edit's score for one query, `[edits]`."""
        raise NotImplementedError

    def decide(self, requests: Any) -> Decision:
        """The edit that each request is about."""
        return self.decide_queries(self.queries(requests))

    def decide_queries(self, queries: Any) -> Decision:
        """The edit that each query belongs to."""
        decision = decide(*self.nearest(queries), self.threshold, self.rival_weight)
        if self.withdrawn is None:
            return decision
        return self.withdrawn.hold_back(decision, *self.nearest_withdrawn(queries))

    def from_features(self, pooled: Tensor) -> Any:
        """Requests in the form that this router decides by, of features `[requests, D]`; for routers that need them."""
        raise NotImplementedError

    def set_background(self, pooled: Tensor, averaged: int | None = None) -> None:
        """Learn the background from features `[prompts, D]`; for routers that need them.

        The mean of the first `averaged` is what fingerprints are taken from; those of all serve calibration.
        """
        raise NotImplementedError

    def in_words(self, against: int) -> str | None:
        """What a decision's `against` says of the request, after "it"; None for nothing."""
        return None

    def add_decoys(self, decoys: Sequence[str]) -> None:
        """Compare with these questions too, which are none of the edits'; only a router by meaning can."""
        raise CorrigendaError("Decoys are for edits that are found by meaning; these are found by their tokens.")

    def observe(self, features: Tensor, context: RoutingContext) -> None:
        """Decide in a pass that holds whole prompts, from a layer's features; for routers that need them."""
        raise NotImplementedError

    @property
    def threshold(self) -> float:
        """The score from which a request counts as an edit's; calibrated when first asked for.

        Put off till then: a stream that only writes would pay after every batch.
        """
        self._prepare()
        if self._threshold is None:
            self._threshold = self.floor if self.threshold_setting == "auto" else float(self.threshold_setting)
            if self.threshold_setting == "auto" and self.size:
                self._threshold = calibrated(self._background_scores(), self.floor, self.ceiling)
        return self._threshold

    def _prepare(self) -> None:
        """Bring up to date what scores depend on."""

    def _background_scores(self) -> Tensor:
        """What `decide` compares with the threshold, for the background prompts."""
        raise NotImplementedError

    # Readers and what is saved

    def view(self) -> Self:
        """The router as it is now, for a reader: edits that are stored or removed later do not show there."""
        self._prepare()
        view = super().view()
        view._count = self._count.clone()
        return view

    def ground(self) -> dict[str, Tensor]:
        """What decisions depend on besides the stored edits."""
        raise NotImplementedError

    def load_ground(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `ground` gave; edits that are stored are forgotten."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """Every tensor the decisions depend on, but the edits that were taken out."""
        raise NotImplementedError


def calibrated(
    background: Tensor, floor: float, ceiling: float = math.inf, quantile: float = 0.995, margin: float = 0.02
) -> float:
    """A threshold that leaves background prompts unrouted: `margin` above their `quantile`, from `floor` to `ceiling`.

    background: what `decide` compares with the threshold, for prompts that no edit is about. The quantile, not the
    maximum: among hundreds of background prompts one or two may really be about a stored edit; and the more edits are
    stored, the more are, hence the ceiling.
    """
    if background.numel() == 0:
        return floor
    return max(floor, min(ceiling, float(torch.quantile(background.float(), quantile)) + margin))
