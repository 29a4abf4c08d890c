"""Vectors that are added to a module's output at tokens of their own, wherever these stand."""

from __future__ import annotations

import torch
from torch import Tensor

from ..views import Viewed


class TokenVectors(Viewed):
    """The memory of sense finetuning: a token of the vocabulary has the sum of all edits' vectors for it.

    `ids` are the tokens of the pass that goes on, int64 `[tokens]`: whoever runs it says so.
    """

    def __init__(self, vocabulary: int, width: int, device: torch.device) -> None:
        super().__init__()
        self.size = 0
        self.ids: Tensor | None = None
        self._row_of = torch.full((vocabulary,), -1, dtype=torch.int64, device=device)
        self._vectors = torch.zeros(0, width, dtype=torch.float32, device=device)

    def add(self, tokens: Tensor, vectors: Tensor) -> None:
        """One more edit: `vectors` `[n, width]` for distinct `tokens` int64 `[n]`."""
        if self._parted():
            self._row_of, self._vectors = self._row_of.clone(), self._vectors.clone()
        tokens = tokens.to(self._row_of.device)
        new = tokens[self._row_of[tokens] < 0]
        count = len(self._vectors)
        self._row_of[new] = torch.arange(count, count + len(new), dtype=torch.int64, device=new.device)
        self._vectors = torch.cat([self._vectors, self._vectors.new_zeros(len(new), self._vectors.shape[1])])
        self._vectors[self._row_of[tokens]] += vectors.to(self._vectors)
        self.size += 1

    def reset(self) -> None:
        """Back to no edits."""
        self._row_of = torch.full_like(self._row_of, -1)
        self._vectors = self._vectors[:0]
        self.size = 0

    def read_(self, out: Tensor, x: Tensor, route: Tensor, first: Tensor) -> None:
        """Add the vectors of the pass's tokens to `out` `[tokens, width]`, in place, where `route` is not -1."""
        if self.ids is None or not len(self._vectors):
            return
        row = self._row_of.index_select(0, self.ids)
        read = ((route >= 0) & (row >= 0))[:, None]
        added = self._vectors.index_select(0, row.clamp(min=0))
        torch.where(read, (out + added).to(out.dtype), out, out=out)

    def norms(self) -> dict[str, float]:
        norms = self._vectors.norm(dim=1)
        largest = float(norms.max()) if len(norms) else 0.0
        return {"norm": float(norms.norm()), "tokens": float(len(norms)), "largest_token": largest}

    def state(self) -> dict[str, Tensor]:
        known = (self._row_of >= 0).nonzero()[:, 0]
        return {"memory.tokens": known, "memory.vectors": self._vectors[self._row_of[known]]}
