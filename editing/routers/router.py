"""What a router decides: which stored edit, if any, a prompt is about; and which ones were taken out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import CorrigendaError


class Decision(NamedTuple):
    """The routers' answer for a batch of prompts, one entry each.

    route      int32: the edit to apply, -1 for none
    nearest    int32: the best-matching edit, applied or not; -1 where none is stored
    score      float32: how well it matches, 0 to 1
    runner_up  float32: the same of the second best
    margin     float32: how far the best match stands above what it takes to be applied; below 0 it was not
    withdrawn  int32: the withdrawn edit that kept the best match from being applied, by its place; -1 for none
    """

    route: Tensor
    nearest: Tensor
    score: Tensor
    runner_up: Tensor
    margin: Tensor
    withdrawn: Tensor


def decide(nearest: Tensor, score: Tensor, runner_up: Tensor, threshold: float, rival_weight: float) -> Decision:
    """Apply the best match where it stands out: score less a share of the runner-up's reaches the threshold."""
    margin = score - rival_weight * runner_up - threshold
    route = torch.where((nearest >= 0) & (margin >= 0), nearest, -1).int()
    return Decision(route, nearest, score, runner_up, margin, torch.full_like(nearest, -1))


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


class EditRouter:
    """What the routers that name edits have in common."""

    withdrawn: Withdrawn | None = None

    def fits(self, fingerprint: Tensor) -> bool:
        """Whether int32 `[n]` could be the fingerprint of an edit here."""
        raise NotImplementedError

    def rows_of(self, fingerprints: Sequence[Tensor]) -> Tensor:
        """Fingerprints (at least one) as they are stored, int32 `[edits, width]`."""
        raise NotImplementedError

    def nearest_withdrawn(self, queries: Any) -> tuple[Tensor, Tensor]:
        """Of the withdrawn edits, of which there are some, the best for each fingerprint, and its score."""
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
