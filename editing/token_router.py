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
        self.rows: list[list[int]] = []
        self.publish()

    def fingerprint(self, text: str) -> list[int]:
        """The distinct token ids of a text: lower case and after a space, so that a name is cut alike everywhere."""
        ids = self.tokenizer(" " + " ".join(text.lower().split()), add_special_tokens=False)["input_ids"]
        return sorted(set(ids))

    def add(self, texts: Sequence[str]) -> None:
        """Store the edits with these prompts, in order; `publish` makes them visible to `decide`."""
        for text in texts:
            row = self.fingerprint(text)
            self._frequency[row] += 1
            self.rows.append(row)

    def publish(self) -> None:
        """Weigh tokens by the edits stored so far, and calibrate: a function of the set of edits, not of its order."""
        documents = len(self._background) + len(self.rows)
        frequency = self._frequency.clamp(min=1).double()
        rarity = ((documents + 1) / frequency).log().square() * _RARITY_SCALE
        self.rarity = rarity.round().int().to(self.device)
        weight = rarity.round().tolist() if any(len(row) > _LONGEST for row in self.rows) else None
        rows = self.rows if weight is None else [_rarest(row, weight) for row in self.rows]
        self.stored = _padded(rows, self.device)
        self.threshold = self._floor
        if self._asked != "auto":
            self.threshold = float(self._asked)
        elif self.rows:
            nearest = self._match(self._background)
            self.threshold = calibrated(nearest.score - self.rival_weight * nearest.runner_up, self._floor)

    def _match(self, rows: Sequence[list[int]]) -> Decision:
        nearest, score, runner_up = ops.token_overlap(
            _padded(rows, self.device), self.stored, self.rarity, self.extra_weight
        )
        return decide(nearest, score, runner_up, self.threshold, self.rival_weight)

    def decide(self, texts: Sequence[str]) -> Decision:
        """The edit that each text is about."""
        return self._match([self.fingerprint(text) for text in texts])

    def state(self) -> dict[str, Tensor]:
        """Every tensor the decisions depend on, for saving."""
        return {"router.tokens": _padded(self.rows, torch.device("cpu")), "router.frequency": self._frequency}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self.rows = [[token for token in row if token >= 0] for row in tensors["router.tokens"].tolist()]
        self._frequency = tensors["router.frequency"]
        self.publish()


def _rarest(row: list[int], weight: list[float]) -> list[int]:
    return sorted(sorted(row, key=lambda token: (-weight[token], token))[:_LONGEST])


def _padded(rows: Sequence[list[int]], device: torch.device) -> Tensor:
    """int32 `[rows, longest]`, -1 where a row has ended; a multiple of 8 wide."""
    width = 8 * max(1, math.ceil(max((len(row) for row in rows), default=1) / 8))
    padded = torch.full((len(rows), width), -1, dtype=torch.int32)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.tensor(row, dtype=torch.int32)
    return padded.to(device)
