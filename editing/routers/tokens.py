"""Routes by the rare tokens that a prompt shares with a stored edit: no forward pass, no features."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...kernels import ops
from ..edits.edit import Edit
from ..edits.tokenizer import Tokenizer
from ..errors import CorrigendaError
from .meaning.known import token_row
from .router import EditRouter

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

    Decided from token ids alone, a route cannot depend on padding, batch, cache, chunks or shared prefixes. Of edits
    that were written for the router by meaning it reads the tokens alone.
    """

    needs_features = False

    def __init__(
        self,
        tokenizer: Tokenizer,
        background: Sequence[str],
        *,
        threshold: float | str = "auto",
        floor: float = 0.40,
        ceiling: float = 0.45,
        rival_weight: float = 0.4,
        extra_weight: float = 0.1,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(threshold, floor, ceiling, rival_weight, device)
        self.tokenizer = tokenizer
        self.extra_weight = extra_weight
        self._background = [self.fingerprint(text) for text in background]
        vocabulary = max(len(tokenizer), 1 + max((max(row, default=0) for row in self._background), default=0))
        self._frequency = torch.zeros(vocabulary, dtype=torch.int32, device="cpu")
        for row in self._background:
            self._frequency[row] += 1
        self._commonness = self._frequency.clone()
        self._stored = torch.full((64, _WIDTH), -1, dtype=torch.int32, device=self.device)
        self._stale = True

    def fingerprint(self, text: str) -> list[int]:
        """The distinct token ids of a text: lower case and after a space, so that a name is cut alike everywhere."""
        return sorted(set(self.tokenizer(_spaced(text), add_special_tokens=False)["input_ids"]))

    def known_by(self, text: str) -> list[int]:
        """The token ids by which an edit with this prompt is stored."""
        row = self.fingerprint(text)
        if len(row) > _LONGEST:
            # By the background's counts, not the edits': what is kept must not depend on the order of edits.
            row = sorted(sorted(row, key=lambda token: (int(self._commonness[token]), token))[:_LONGEST])
        return row

    def fact_of(self, fingerprint: Tensor) -> tuple[int, ...]:
        return tuple(token_row(fingerprint))

    def fits(self, fingerprint: Tensor) -> bool:
        return self._are_ids(token_row(fingerprint))

    def _are_ids(self, row: list[int]) -> bool:
        return row == sorted(set(row)) and (not row or 0 <= row[0] <= row[-1] < self.vocabulary)

    def rows_of(self, fingerprints: Sequence[Tensor]) -> Tensor:
        return _padded([token_row(fingerprint) for fingerprint in fingerprints], self.device)

    def fingerprints_of(self, prompts: Sequence[str], edits: Sequence[Edit] | None = None) -> list[Tensor]:
        return [torch.tensor(self.known_by(prompt), dtype=torch.int32, device="cpu") for prompt in prompts]

    def add_fingerprints(self, fingerprints: Sequence[Tensor]) -> None:
        rows = [token_row(fingerprint) for fingerprint in fingerprints]
        if not all(map(self._are_ids, rows)):
            raise CorrigendaError("its fingerprint is not one of this router's")
        self.add_rows(rows)

    def add_rows(self, rows: Sequence[list[int]]) -> None:
        """Store edits of these distinct token ids, ascending, in order: all at once, for one takes 20 us by itself."""
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        if not len(lengths):
            return
        ids = np.fromiter(itertools.chain.from_iterable(rows), dtype=np.int32, count=int(lengths.sum()))
        self.reserve(self.size + len(rows), int(lengths.max()))
        width = self._stored.shape[1]
        padded: np.ndarray = np.full((len(rows), width), -1, dtype=np.int32)
        padded[np.arange(width) < lengths[:, None]] = ids
        self._stored[self.size : self.size + len(rows)] = torch.from_numpy(padded)
        self._frequency += torch.from_numpy(np.bincount(ids, minlength=self.vocabulary).astype(np.int32))
        self.size += len(rows)
        self._count.fill_(self.size)
        self._stale = True

    def reserve(self, edits: int, tokens: int) -> None:
        rows, width = self._stored.shape
        if edits > rows or tokens > width:
            rows = rows if edits <= rows else max(edits, 2 * rows)
            grown = self._stored.new_full((rows, max(width, _WIDTH * math.ceil(tokens / _WIDTH))), -1)
            grown[: self.size, :width] = self.stored
            self._stored = grown

    def remove(self, edits: set[int]) -> None:
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
    def rarity(self) -> Tensor:
        """int32 `[vocabulary]`: what each token weighs beside the edits stored so far."""
        self._prepare()
        return self._rarity

    @property
    def stored(self) -> Tensor:
        """int32 `[edits, longest]`: each edit's token ids, -1 where they end."""
        return self._stored[: self.size]

    def _prepare(self) -> None:
        """Weigh tokens by the edits stored so far: a function of the set of edits, not of its order."""
        if not self._stale:
            return
        self._stale = False
        documents = len(self._background) + self.size
        frequency = self._frequency.clamp(min=1).double()
        rarity = ((documents + 1) / frequency).log().square() * _RARITY_SCALE
        self._rarity = rarity.round().int().to(self.device)
        self._threshold = None

    def _background_scores(self) -> Tensor:
        _, score, runner_up = self.nearest(self._background)
        return score - self.rival_weight * runner_up

    def queries(self, requests: Sequence[str]) -> list[list[int]]:
        cut = self.tokenizer([_spaced(text) for text in requests], add_special_tokens=False) if requests else None
        return [] if cut is None else [sorted(set(ids)) for ids in cut["input_ids"]]

    def nearest(self, queries: Sequence[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
        self._prepare()
        rows = _padded(queries, self.device)
        return ops.token_overlap(rows, self._stored, self._rarity, self.extra_weight, self._count)

    def nearest_stored(self, fingerprints: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        return self.nearest([token_row(fingerprint) for fingerprint in fingerprints])

    def scores(self, queries: Sequence[list[int]]) -> Tensor:
        self._prepare()
        (row,) = queries
        weight = torch.cat([self._rarity.cpu(), torch.zeros(1, dtype=torch.int32, device="cpu")])
        asked = torch.zeros_like(weight)
        asked[row] = weight[row]
        stored = self.stored.cpu().long()
        shared, own = asked[stored].sum(1), weight[stored].sum(1)
        own = own + self.extra_weight * (asked.sum() - shared)
        return torch.where(own > 0, shared.float() / own, 0.0)

    def nearest_withdrawn(self, queries: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        self._prepare()
        rows = _padded(queries, self.device)
        return ops.token_overlap(rows, self.withdrawn.rows, self._rarity, self.extra_weight)[:2]

    def ground(self) -> dict[str, Tensor]:
        return {"router.background": _padded(self._background, self.device)}

    def load_ground(self, tensors: dict[str, Tensor]) -> None:
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
        longest = int((self.stored >= 0).sum(1).max()) if self.size else 0
        width = max(_WIDTH, _WIDTH * math.ceil(longest / _WIDTH))
        return {"router.tokens": self.stored[:, :width].clone(), **self.ground()}


def _spaced(text: str) -> str:
    return " " + " ".join(text.lower().split())


def _rows(padded: Tensor) -> list[list[int]]:
    return [[token for token in row if token >= 0] for row in padded.tolist()]


def _padded(rows: Sequence[list[int]], device: torch.device) -> Tensor:
    """int32 `[rows, longest]`, -1 where a row has ended."""
    padded = torch.full((len(rows), max(map(len, rows), default=0)), -1, dtype=torch.int32, device="cpu")
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.tensor(row, dtype=torch.int32, device="cpu")
    return padded.to(device)
