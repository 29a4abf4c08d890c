"""What an edited layer knows of the sequences in a forward pass: buffers that a provider fills before the pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..edits.answer_start import AnswerPlan
from .progress import AnswerProgress
from .router import Decision


class RoutingContext:
    """Per-token and per-slot buffers; a *slot* is a sequence, a *route* is the edit applied to it, or -1.

    A provider (for transformers' `generate`: `generation.py`; for continuous batching: `corrigenda.serving`) writes
    them before each forward; edited layers only read them, so one layer serves eager, compiled and captured passes.
    The buffers keep their addresses while the capacity suffices. Slot 0 is nobody's and never routed: padding and
    captured passes belong to it.

    Per token, in the order in which the layer sees the tokens:
        slot   int32   the sequence it belongs to
        gate   bool    the memory may act on this token
        first  bool    the last prompt token, from which the first answer token is predicted
        row    int32   the row of its edit that is read at this token, where tokens have told; -1 where not
        weight float32 its weight in the pooled fingerprint of the prompt (0: padding or generated)
    Per slot:
        route  int32   the edit that answers this sequence, -1 for none
        stopped int32  at how many of its tokens so far the memory was left out, for what it would have added
    Per sequence of a pass in which features decide:
        offsets int32  where its tokens begin, and after the last one where they end
    Per token, where a router decides about each anew:
        each   int32   the edit that answers it, whatever answers its sequence; else None
    """

    def __init__(self, device: torch.device, tokens: int = 4096, slots: int = 64) -> None:
        self.device = device
        self.tokens = 0
        self.slots = 0
        self.active = False
        # True in a pass that holds whole prompts whose features decide the route (mask routers).
        self.deciding = False
        self.decision: Decision | None = None  # what the router last decided in a pass
        self.progress: AnswerProgress | None = None  # from the first sequence on whose answer is followed
        self.tells_rows = False  # from then on, or where passes may be captured: `row` is read in every pass
        self.each: Tensor | None = None
        self._allocate(tokens, slots)

    def _allocate(self, tokens: int, slots: int) -> None:
        self.slot = torch.zeros(tokens, dtype=torch.int32, device=self.device)
        self.gate = torch.zeros(tokens, dtype=torch.bool, device=self.device)
        self.first = torch.zeros(tokens, dtype=torch.bool, device=self.device)
        self.row = torch.full((tokens,), -1, dtype=torch.int32, device=self.device)
        self.weight = torch.zeros(tokens, dtype=torch.float32, device=self.device)
        self.route = torch.full((slots + 1,), -1, dtype=torch.int32, device=self.device)
        self.stopped = torch.zeros(slots + 1, dtype=torch.int32, device=self.device)

    def reserve(self, tokens: int, slots: int) -> None:
        """Room for passes of this many tokens and sequences: until it is used up, the buffers keep their addresses."""
        if tokens > len(self.slot) or slots >= len(self.route):
            route, stopped = self.route, self.stopped
            self._allocate(max(tokens, len(self.slot)), max(slots, len(route) - 1))
            self.route[: len(route)].copy_(route)
            self.stopped[: len(route)].copy_(stopped)

    @property
    def routes(self) -> Tensor:
        """int32 `[slots]`: the routes of the sequences that were started together."""
        return self.route[1 : self.slots + 1]

    def start(self, route: Tensor) -> None:
        """Begin sequences, one slot each from 1 on, with the routes already known (-1 where features are to decide)."""
        if len(route) >= len(self.route):
            self.reserve(0, max(len(route), 2 * len(self.route)))
        self.slots = len(route)
        self.routes.copy_(route)
        self.stopped.zero_()
        if self.progress is not None:
            self.progress.forget()

    def follow(
        self,
        slot: int,
        plan: AnswerPlan | None,
        last: int,
        kinds: Callable[[], np.ndarray],
        said: Sequence[int] = (),
    ) -> None:
        """Let the tokens of a slot's sequence say where its answer stands, from its prompt's last position on.

        kinds: gives those of the vocabulary (`Vocabulary`), which take a while; said: see `AnswerProgress.begin`.
        """
        if self.progress is None:
            if plan is None:
                return
            self.progress = AnswerProgress(kinds(), len(self.route) - 1, self.device)
            self.tells_rows = True
        self.progress.begin(slot, plan, last, said)

    def advance(self, tokens: Tensor, slots: np.ndarray, past: np.ndarray, lengths: np.ndarray) -> None:
        """Follow the answers in the pass that was just described (`AnswerProgress.advance`)."""
        if self.progress:
            self.progress.advance(tokens.to(self.device), slots, past, lengths, self.gate, self.row)

    def fill(self, gate: Tensor, first: Tensor, weight: Tensor, *, deciding: bool) -> None:
        """Describe the next pass as `[slots, length]` each, row i being the i-th sequence that was started."""
        rows, length = gate.shape
        if deciding:
            self.offsets = torch.arange(rows + 1, dtype=torch.int32, device=self.device) * length
        slot = torch.arange(1, rows + 1, dtype=torch.int32, device=self.device).repeat_interleave(length)
        self.describe(slot, gate.reshape(-1), first.reshape(-1), weight.reshape(-1), deciding=deciding)

    def describe(
        self, slot: Tensor, gate: Tensor, first: Tensor, weight: Tensor | None = None, *, deciding: bool = False
    ) -> None:
        """Describe the tokens of the next pass, `[tokens]` each, packed in any order of sequences."""
        count = len(slot)
        if count > len(self.slot):
            self.reserve(max(count, 2 * len(self.slot)), 0)
        for buffer, values in ((self.slot, slot), (self.gate, gate), (self.first, first), (self.weight, weight)):
            if values is not None:
                # From pageable memory a copy would wait for all that the device has been given to do.
                pinned = values.pin_memory() if buffer.is_cuda and not values.is_cuda else values
                buffer[:count].copy_(pinned, non_blocking=True)
        if count < self.tokens:  # where an earlier pass had tokens, this one may have padding
            self.gate[count : self.tokens] = False
        if self.tells_rows:
            self.row[: max(count, self.tokens)] = -1
        self.tokens = count
        self.each = None
        self.deciding = deciding
        self.active = True

    def last_tokens(self) -> Tensor:
        """int64 `[slots]`: where in the pass the last prompt token of each sequence is, of those that it holds."""
        count = self.tokens
        token = torch.arange(count, dtype=torch.int64, device=self.device)
        place = torch.zeros(self.slots + 1, dtype=torch.int64, device=self.device)
        return place.scatter_(0, torch.where(self.first[:count], self.slot[:count], 0).long(), token)[1:]

    def token_routes(self, count: int) -> Tensor:
        """int32 `[count]`: the edit to read at each token of the pass, -1 for none."""
        if self.each is not None:
            return torch.where(self.gate[:count], self.each[:count], -1)
        return torch.where(self.gate[:count], self.route.index_select(0, self.slot[:count]), -1)

    def told_rows(self, count: int) -> tuple[Tensor, Tensor]:
        """int32 `[count]` each: the edit and its row that are read at each token whose row was told; -1 for none."""
        row = self.row[:count]
        return torch.where(row >= 0, self.route.index_select(0, self.slot[:count]), -1), row

    def stop(self) -> None:
        """End: until the next `fill`, edited layers are the base model's."""
        self.active = False
        self.deciding = False
