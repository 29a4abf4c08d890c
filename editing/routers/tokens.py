"""Routes by the rare tokens that a prompt shares with a stored edit: no forward pass, no features."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels import ops
from ..errors import CorrigendaError
from .router import Decision, EditRouter, calibrated, decide

_RARITY_SCALE = 64
"""Rarities are integers in 1/64: their sums are then exact, and equal on every backend."""

_WIDTH = 16
"""Stored rows grow wider by this many tokens: a question has 8 to 20 distinct ones."""

_LONGEST = 256
"""An edit is known by at most this many of its tokens, the rarest."""


class TokenRouter(EditRouter):
    """Which edit a prompt is about is nearly lexical: the rare tokens, mostly of names, decide.

    A token's rarity is its squared inverse document frequency over the stored edits and the background prompts, so a
    phrase that many edits share ("the mother tongue of") weighs little. The score of an edit is the Tversky index of
    the two token sets under these weights: shared / (edit's + `extra_weight` * query's own). It is asymmetric, for a
    query may say more than the edit (an unrelated sentence before the question) but hardly less.

    Background prompts that reach .4 are about a subject of some edit, and the more edits, the more of them are. So the
    "auto" threshold stays between `floor` and `ceiling`: beside CounterFact's 1,982 edits it would be .68, where .46 of
    the rephrasings are found and 1.5 % of the locality prompts misfire; at .45 .96 are found, and 5.4 % misfire
    (`bench/routers.py`).

    Decided from token ids alone, a route cannot depend on padding, batch, cache, chunks or shared prefixes.
    """

    def __init__(
        self,
        tokenizer: Any,
        background: Sequence[str],
        *,
        threshold: float | str = "auto",
        floor: float = 0.40,
        ceiling: float = 0.45,
        rival_weight: float = 0.4,
        extra_weight: float = 0.1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.tokenizer = tokenizer
        self.rival_weight = rival_weight
        self.extra_weight = extra_weight
        self.device = torch.device(device)
        self._asked = threshold
        self._floor, self._ceiling = floor, ceiling
        self._background = [self.fingerprint(text) for text in background]
        vocabulary = max(len(tokenizer), 1 + max((max(row, default=0) for row in self._background), default=0))
        self._frequency = torch.zeros(vocabulary, dtype=torch.int32, device="cpu")
        for row in self._background:
            self._frequency[row] += 1
        self._commonness = self._frequency.clone()
        self._stored = torch.full((64, _WIDTH), -1, dtype=torch.int32, device=self.device)
        self._count = torch.zeros(1, dtype=torch.int32, device=self.device)
        self.size = 0
        self._stale = True
        self._threshold: float | None = None
        self._views: weakref.WeakSet[TokenRouter] = weakref.WeakSet()

    def fingerprint(self, text: str) -> list[int]:
        """The distinct token ids of a text: lower case and after a space, so that a name is cut alike everywhere."""
        ids = self.tokenizer(" " + " ".join(text.lower().split()), add_special_tokens=False)["input_ids"]
        return sorted(set(ids))

    def known_by(self, text: str) -> list[int]:
        """The token ids by which an edit with this prompt is stored."""
        row = self.fingerprint(text)
        if len(row) > _LONGEST:
            # By the background's counts, not the edits': what is kept must not depend on the order of edits.
            row = sorted(sorted(row, key=lambda token: (int(self._commonness[token]), token))[:_LONGEST])
        return row

    def fits(self, fingerprint: Tensor) -> bool:
        ids = fingerprint.tolist()
        return ids == sorted(set(ids)) and (not ids or 0 <= ids[0] <= ids[-1] < self.vocabulary)

    def rows_of(self, fingerprints: Sequence[Tensor]) -> Tensor:
        return _padded([fingerprint.tolist() for fingerprint in fingerprints], self.device)

    def add(self, texts: Sequence[str]) -> None:
        """Store the edits with these prompts, in order."""
        self.add_rows([self.known_by(text) for text in texts])

    def add_rows(self, rows: Sequence[list[int]]) -> None:
        """Store the edits that are known by these token ids, in order."""
        for row in rows:
            self._append(row)
        self._count.fill_(self.size)
        self._stale = True

    def _append(self, row: list[int]) -> None:
        self.reserve(self.size + 1, len(row))
        self._stored[self.size, : len(row)] = torch.tensor(row, dtype=torch.int32, device="cpu")
        self._frequency[row] += 1
        self.size += 1

    def reserve(self, edits: int, tokens: int) -> None:
        """Room for this many edits of that many tokens: until it is used up, the buffers keep their addresses."""
        rows, width = self._stored.shape
        if edits > rows or tokens > width:
            rows = rows if edits <= rows else max(edits, 2 * rows)
            grown = self._stored.new_full((rows, max(width, _WIDTH * math.ceil(tokens / _WIDTH))), -1)
            grown[: self.size, :width] = self.stored
            self._stored = grown

    def view(self) -> TokenRouter:
        """The router as it is now, for a reader: edits that are stored or removed later do not show there."""
        self._refresh()
        view = copy.copy(self)
        view._count = self._count.clone()
        self._views.add(view)
        return view

    def remove(self, edits: set[int]) -> None:
        """Forget these edits; the others move up."""
        rows = self.stored.cpu()
        gone = rows[sorted(edits)].flatten().long()
        gone = gone[gone >= 0]
        self._frequency.index_add_(0, gone, torch.ones_like(gone, dtype=torch.int32), alpha=-1)
        rows = rows[[edit for edit in range(self.size) if edit not in edits]]
        if self._views:
            self._stored = torch.full_like(self._stored, -1)
        self._stored[: len(rows)] = rows.to(self.device)
        self._stored[len(rows) :] = -1
        self.size = len(rows)
        self._count.fill_(self.size)
        self._stale = True
        self.withdrawn = None

    @property
    def vocabulary(self) -> int:
        """How many token ids there are."""
        return len(self._frequency)

    @property
    def stored(self) -> Tensor:
        """int32 `[edits, longest]`: each edit's token ids, -1 where they end."""
        return self._stored[: self.size]

    @property
    def threshold(self) -> float:
        """The score from which a prompt counts as an edit's."""
        self._refresh()
        return self._threshold

    def _weigh(self) -> None:
        """Weigh tokens by the edits stored so far: a function of the set of edits, not of its order."""
        if not self._stale:
            return
        self._stale = False
        documents = len(self._background) + self.size
        frequency = self._frequency.clamp(min=1).double()
        rarity = ((documents + 1) / frequency).log().square() * _RARITY_SCALE
        self._rarity = rarity.round().int().to(self.device)
        self._threshold = None

    def _refresh(self) -> None:
        """Weigh and calibrate. Put off to the next question: a stream that only writes would pay after every batch."""
        self._weigh()
        if self._threshold is not None:
            return
        self._threshold = self._floor if self._asked == "auto" else float(self._asked)
        if self._asked == "auto" and self.size:
            _, score, runner_up = self.nearest(self._background)
            self._threshold = calibrated(score - self.rival_weight * runner_up, self._floor, self._ceiling)

    def nearest(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Best stored edit for each fingerprint, its score, and the second best's score."""
        self._weigh()
        queries = _padded(rows, self.device)
        return ops.token_overlap(queries, self._stored, self._rarity, self.extra_weight, self._count)

    def scores(self, rows: Sequence[list[int]]) -> Tensor:
        """Every stored edit's score for one fingerprint, `[edits]`."""
        self._weigh()
        (row,) = rows
        weight = torch.cat([self._rarity.cpu(), torch.zeros(1, dtype=torch.int32, device="cpu")])
        asked = torch.zeros_like(weight)
        asked[row] = weight[row]
        stored = self.stored.cpu().long()
        shared, own = asked[stored].sum(1), weight[stored].sum(1)
        own = own + self.extra_weight * (asked.sum() - shared)
        return torch.where(own > 0, shared.float() / own, 0.0)

    def decide(self, texts: Sequence[str]) -> Decision:
        """The edit that each text is about."""
        return self.decide_rows([self.fingerprint(text) for text in texts])

    def decide_rows(self, rows: Sequence[list[int]]) -> Decision:
        """The edit that each fingerprint belongs to."""
        self._refresh()
        decision = decide(*self.nearest(rows), self._threshold, self.rival_weight)
        if self.withdrawn is None:
            return decision
        return self.withdrawn.hold_back(decision, *self.nearest_withdrawn(rows))

    def nearest_withdrawn(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        self._weigh()
        queries = _padded(rows, self.device)
        return ops.token_overlap(queries, self.withdrawn.rows, self._rarity, self.extra_weight)[:2]

    def ground(self) -> dict[str, Tensor]:
        """What decisions depend on besides the stored edits."""
        return {"router.background": _padded(self._background, self.device)}

    def load_ground(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `ground` gave; edits that are stored are forgotten."""
        background = tensors.get("router.background", torch.zeros(0, dtype=torch.float32, device="cpu"))
        if background.dim() != 2 or background.is_floating_point() or bool((background >= self.vocabulary).any()):
            raise CorrigendaError("its background prompts are not token ids of this tokenizer")
        self._background = _rows(background)
        self._frequency.zero_()
        for row in self._background:
            self._frequency[row] += 1
        self._commonness = self._frequency.clone()
        self._stored = self._stored.new_full((len(self._stored), _WIDTH), -1)
        self.size = 0
        self._count.zero_()
        self._stale = True
        self.withdrawn = None

    def state(self) -> dict[str, Tensor]:
        """Every tensor the decisions depend on, but the edits that were taken out."""
        longest = int((self.stored >= 0).sum(1).max()) if self.size else 0
        width = max(_WIDTH, _WIDTH * math.ceil(longest / _WIDTH))
        return {"router.tokens": self.stored[:, :width].clone(), **self.ground()}


def _rows(padded: Tensor) -> list[list[int]]:
    return [[token for token in row if token >= 0] for row in padded.tolist()]


def _padded(rows: Sequence[list[int]], device: torch.device) -> Tensor:
    """int32 `[rows, longest]`, -1 where a row has ended."""
    padded = torch.full((len(rows), max(map(len, rows), default=0)), -1, dtype=torch.int32, device="cpu")
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.tensor(row, dtype=torch.int32, device="cpu")
    return padded.to(device)
