"""Routes by the rare tokens that a prompt shares with a stored edit: no forward pass, no features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels import ops
from .routing import Decision, calibrated, decide

_RARITY_SCALE = 64
"""Rarities are integers in 1/64: their sums are then exact, and equal on every backend."""

_WIDTH = 16
"""Stored rows grow wider by this many tokens: a question has 8 to 20 distinct ones."""

_LONGEST = 256
"""An edit is known by at most this many of its tokens, the rarest."""


class TokenRouter:
    """Which edit a prompt is about is nearly lexical: the rare tokens, mostly of names, decide.

    A token's rarity is its squared inverse document frequency over the stored edits and the background prompts, so a
    phrase that many edits share ("the mother tongue of") weighs little. The score of an edit is the Tversky index of
    the two token sets under these weights: shared / (edit's + `extra_weight` * query's own). It is asymmetric, for a
    query may say more than the edit (an unrelated sentence before the question) but hardly less.

    Decided from token ids alone, a route cannot depend on padding, batch, cache, chunks or shared prefixes.
    """

    def __init__(
        self,
        tokenizer: Any,
        background: Sequence[str],
        *,
        threshold: float | str = "auto",
        floor: float = 0.40,
        rival_weight: float = 0.4,
        extra_weight: float = 0.1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.tokenizer = tokenizer
        self.rival_weight = rival_weight
        self.extra_weight = extra_weight
        self.device = torch.device(device)
        self._asked = threshold
        self._floor = floor
        self._background = [self.fingerprint(text) for text in background]
        vocabulary = max(len(tokenizer), 1 + max((max(row, default=0) for row in self._background), default=0))
        self._frequency = torch.zeros(vocabulary, dtype=torch.int32)
        for row in self._background:
            self._frequency[row] += 1
        self._commonness = self._frequency.clone()
        self._stored = torch.full((64, _WIDTH), -1, dtype=torch.int32, device=self.device)
        self._count = torch.zeros(1, dtype=torch.int32, device=self.device)
        self.size = 0
        self._stale = True

    def fingerprint(self, text: str) -> list[int]:
        """The distinct token ids of a text: lower case and after a space, so that a name is cut alike everywhere."""
        ids = self.tokenizer(" " + " ".join(text.lower().split()), add_special_tokens=False)["input_ids"]
        return sorted(set(ids))

    def add(self, texts: Sequence[str]) -> None:
        """Store the edits with these prompts, in order."""
        for text in texts:
            row = self.fingerprint(text)
            if len(row) > _LONGEST:
                # By the background's counts, not the edits': what is kept must not depend on the order of edits.
                row = sorted(sorted(row, key=lambda token: (int(self._commonness[token]), token))[:_LONGEST])
            self._append(row)

    def _append(self, row: list[int]) -> None:
        if self.size == len(self._stored) or len(row) > self._stored.shape[1]:
            rows = len(self._stored) * (2 if self.size == len(self._stored) else 1)
            width = max(self._stored.shape[1], _WIDTH * math.ceil(len(row) / _WIDTH))
            grown = self._stored.new_full((rows, width), -1)
            grown[: self.size, : self._stored.shape[1]] = self._stored[: self.size]
            self._stored = grown
        self._stored[self.size, : len(row)] = torch.tensor(row, dtype=torch.int32)
        self._frequency[row] += 1
        self.size += 1
        self._count.fill_(self.size)
        self._stale = True

    def remove(self, edits: set[int]) -> None:
        """Forget these edits; the others move up."""
        rows = _rows(self.stored)
        self._frequency.copy_(self._commonness)
        self._stored = self._stored.new_full((len(self._stored), _WIDTH), -1)
        self.size = 0
        self._stale = True
        for edit, row in enumerate(rows):
            if edit not in edits:
                self._append(row)
        self._count.fill_(self.size)

    @property
    def stored(self) -> Tensor:
        """int32 `[edits, longest]`: each edit's token ids, -1 where they end."""
        return self._stored[: self.size]

    @property
    def threshold(self) -> float:
        """The score from which a prompt counts as an edit's."""
        self._refresh()
        return self._threshold

    def _refresh(self) -> None:
        """Weigh tokens by the edits stored so far, and calibrate: a function of the set of edits, not of its order.

        Put off to the next question: a stream that only writes would pay for it after every batch.
        """
        if not self._stale:
            return
        self._stale = False
        documents = len(self._background) + self.size
        frequency = self._frequency.clamp(min=1).double()
        rarity = ((documents + 1) / frequency).log().square() * _RARITY_SCALE
        self._rarity = rarity.round().int().to(self.device)
        self._threshold = self._floor if self._asked == "auto" else float(self._asked)
        if self._asked == "auto" and self.size:
            nearest = self._match(self._background)
            self._threshold = calibrated(nearest.score - self.rival_weight * nearest.runner_up, self._floor)

    def _match(self, rows: Sequence[list[int]]) -> Decision:
        nearest, score, runner_up = ops.token_overlap(
            _padded(rows, self.device), self._stored, self._rarity, self.extra_weight, self._count
        )
        return decide(nearest, score, runner_up, self._threshold, self.rival_weight)

    def decide(self, texts: Sequence[str]) -> Decision:
        """The edit that each text is about."""
        self._refresh()
        return self._match([self.fingerprint(text) for text in texts])

    def state(self) -> dict[str, Tensor]:
        """Every tensor the decisions depend on, for saving."""
        return {"router.tokens": self.stored.clone(), "router.background": _padded(self._background, self.device)}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state` gave, in place of what was there."""
        self._background = _rows(tensors["router.background"])
        self._frequency.zero_()
        for row in self._background:
            self._frequency[row] += 1
        self._commonness = self._frequency.clone()
        self.size = 0
        self._count.zero_()
        self._stored.fill_(-1)
        for row in _rows(tensors["router.tokens"]):
            self._append(row)
        self._stale = True


def _rows(padded: Tensor) -> list[list[int]]:
    return [[token for token in row if token >= 0] for row in padded.tolist()]


def _padded(rows: Sequence[list[int]], device: torch.device) -> Tensor:
    """int32 `[rows, longest]`, -1 where a row has ended."""
    padded = torch.full((len(rows), max(map(len, rows), default=0)), -1, dtype=torch.int32)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.tensor(row, dtype=torch.int32)
    return padded.to(device)
