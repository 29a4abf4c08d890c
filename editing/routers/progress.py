"""How far each sequence's answer is said: which of its tokens comes next, found from those that stand there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..edits.answer_start import (
    AFTER_COLON,
    AFTER_THOUGHT,
    LEFT,
    QUOTED,
    SAID,
    THINKING,
    WAITS,
    AnswerPlan,
)
from ..edits.spelling import COLON, OPENED, QUOTE, SPACE, THINKS, THOUGHT, WORD

_NOWHERE = -99
"""Where the arcs begin that pad a slot's."""

_RECENT = 64
"""Positions whose states are kept: from one of them a pass goes on, after what was guessed wrong as well."""

_ARCS = 256
"""Arcs for which each slot has room at first."""


class _Pass(NamedTuple):
    """Tokens of as many sequences, int64 `[n]` each: their places in the pass, their slots, their positions."""

    index: Tensor
    slot: Tensor
    position: Tensor


class AnswerProgress:
    """By slot the plan of its answer, and its state at the positions computed last.

    A state follows from the one at the position before and the token that stands there (`AnswerPlan`), whatever wrote
    that token: a caller's prefill is in the plan's `start`, all else is followed here, on the device, where a stack
    may have sampled it without the host knowing. Sequences without a plan are left alone.

    kinds: uint8 `[vocabulary]`, of `Vocabulary`.
    """

    def __init__(self, kinds: np.ndarray, slots: int, device: torch.device) -> None:
        self.device = device
        self._kinds = torch.from_numpy(np.append(kinds, np.uint8(0))).to(device, torch.int32)
        self._plans: dict[int, AnswerPlan] = {}
        self._last: dict[int, int] = {}
        self._before: _Pass | None = None
        self._allocate(slots, _ARCS)

    def _allocate(self, slots: int, arcs: int) -> None:
        self._arcs = torch.full((slots + 1, 3, arcs), _NOWHERE, dtype=torch.int32, device=self.device)
        # Of each slot: its answer's length, the last node that is read, in quotation marks too, whether it is a
        # number, its bare node, the state at the prompt's last token, and the position of that.
        self._facts = torch.zeros(slots + 1, 7, dtype=torch.int32, device=self.device)
        self._states = torch.full((slots + 1, _RECENT), WAITS, dtype=torch.int32, device=self.device)

    def __bool__(self) -> bool:
        return bool(self._plans)

    def begin(self, slot: int, plan: AnswerPlan | None, last: int, said: Sequence[int] = ()) -> None:
        """Follow the sequence in a slot, whose prompt's last token has the position `last`; None: leave it alone.

        said: tokens after the prompt that passes took in before, of a sequence that another one's is a copy of.
        """
        self.end(slot)
        if plan is None:
            return
        if slot >= len(self._arcs) or len(plan.arcs) > self._arcs.shape[2]:
            self._grow(slot, len(plan.arcs))
        self._plans[slot], self._last[slot] = plan, last
        arcs = torch.tensor(plan.arcs, dtype=torch.int32, device="cpu").view(-1, 3)
        self._arcs[slot, :, len(arcs) :] = _NOWHERE
        self._arcs[slot, :, : len(arcs)] = arcs.T.to(self.device)
        reads = plan.length - (not plan.ends), plan.length - 1
        facts = (plan.length, *reads, plan.numeric, plan.bare, plan.start, last)
        self._facts[slot] = torch.tensor(facts, dtype=torch.int32, device="cpu").to(self.device)
        # Where padding stands between a prompt and what follows it, the state passes over it.
        self._states[slot] = plan.start
        for position, token in enumerate(said, start=last + 1):
            self._states[slot, position % _RECENT] = self._after(slot, token, position)

    def _after(self, slot: int, token: int, position: int) -> Tensor:
        """The state, int32 `[]`, of one slot after one token that the host knows."""
        own, before = self._facts[slot : slot + 1], self._states[slot, (position - 1) % _RECENT][None]
        taken = torch.tensor([token], dtype=torch.int64, device=self.device)
        return self._next(taken, before, self._arcs[slot : slot + 1], own[:, 0], own[:, 4]).int()[0]

    def says(self, plan: AnswerPlan, tokens: Sequence[int]) -> bool:
        """Whether the tokens after a prompt say its plan's answer, or end in the middle of it; in slot 1, alone."""
        self.begin(1, plan, last=0)
        for position, token in enumerate(tokens, start=1):
            state = self._after(1, token, position)
            self._states[1, position % _RECENT] = state
            if state == SAID:
                return True
        state = int(self._states[1, len(tokens) % _RECENT])
        node = state - QUOTED if state >= QUOTED else state
        return node > 0 and node != plan.bare

    def _grow(self, slots: int, arcs: int) -> None:
        before = self._arcs, self._facts, self._states
        count, room = before[0].shape[0], before[0].shape[2]
        self._allocate(max(slots, 2 * (count - 1)), max(room, arcs))
        self._arcs[:count, :, :room] = before[0]
        self._facts[:count], self._states[:count] = before[1:]

    def end(self, slot: int) -> None:
        """Follow a slot no longer."""
        self._before = None
        self._plans.pop(slot, None)
        self._last.pop(slot, None)

    def forget(self) -> None:
        """Follow nobody."""
        for slot in list(self._plans):
            self.end(slot)

    def reorder(self, slots: Tensor, sources: Tensor) -> None:
        """Let each of `slots` have the states of its source: a beam goes on from another one."""
        self._states[slots] = self._states[sources]

    def advance(
        self, tokens: Tensor, slots: np.ndarray, past: np.ndarray, lengths: np.ndarray, gate: Tensor, row: Tensor
    ) -> None:
        """Follow a pass: of the sequence in `slots[i]`, `lengths[i]` tokens from position `past[i]` on, packed.

        Writes, of each followed sequence from its prompt's last token on, which row is read there (`row`, -1 for none)
        and that nothing else is (`gate`). tokens: int `[count]`, on the device.
        """
        self._before = None
        begin = np.cumsum(lengths) - lengths
        followed = [i for i, slot in enumerate(slots) if int(slot) in self._plans]
        last = np.array([self._last[int(slots[i])] for i in followed], dtype=np.int64)
        where = np.array(followed, dtype=np.int64)
        from_ = np.maximum(past[where], last)
        count = past[where] + lengths[where] - from_
        longest = int(count.max(initial=0))
        for step in range(longest):
            some = count > step
            position = from_[some] + step
            index = begin[where[some]] + position - past[where[some]]
            told = (torch.from_numpy(part.astype(np.int64)) for part in (index, slots[where[some]], position))
            taken = _Pass(*(part.to(self.device, non_blocking=True) for part in told))
            self._take(tokens, taken, gate, row)
            if longest == 1:
                self._before = taken

    def again(self, tokens: Tensor, gate: Tensor, row: Tensor) -> None:
        """Follow a pass of the same sequences as the one before, each with its next token."""
        if self._before is not None:
            self._before.position.add_(1)
            self._take(tokens, self._before, gate, row)

    def _take(self, tokens: Tensor, taken: _Pass, gate: Tensor, row: Tensor) -> None:
        slot, position = taken.slot, taken.position
        length, read, read_quoted, numeric, bare, start, last = self._facts[slot].unbind(1)
        before = self._states[slot, (position - 1) % _RECENT]
        state = self._next(tokens[taken.index].long(), before, self._arcs[slot], length, bare)
        state = torch.where(position == last, start, state).int()
        self._states[slot, position % _RECENT] = state
        number = (state == AFTER_COLON) & (numeric > 0)
        node = torch.where(state >= QUOTED, state - QUOTED, torch.where(number, bare, state))
        readable = (node >= 0) & (node <= torch.where(state >= QUOTED, read_quoted, read))
        gate[taken.index] = False
        row[taken.index] = torch.where(readable, node, -1).int()

    def _next(self, token: Tensor, before: Tensor, arcs: Tensor, length: Tensor, bare: Tensor) -> Tensor:
        """The states after tokens, int32 `[n]`; arcs `[n, 3, arcs]`."""
        quoted = before >= QUOTED
        node = torch.where(quoted, before - QUOTED, before)
        led = (arcs[:, 0] == node[:, None]) & (arcs[:, 1] == token[:, None].int())
        to = torch.where(led, arcs[:, 2], -1).amax(1)
        kind = self._kinds[token.clamp(max=len(self._kinds) - 1)]

        def of(bit: int) -> Tensor:
            return (kind & bit) > 0

        space = of(SPACE)
        opened = of(OPENED) | (of(QUOTE) & (before == AFTER_COLON))
        after = torch.where(of(COLON) | (space & (before == AFTER_COLON)), AFTER_COLON, WAITS)
        after = torch.where(opened, QUOTED + bare, after)
        after = torch.where(space & ((before == AFTER_THOUGHT) | (before == 0)), bare, after)
        after = torch.where(space & (node == bare), before, after)
        after = torch.where((node > 0) & (node < length) | (before == LEFT) | (node > length), LEFT, after)
        # 1872 is no part of 18726, nor a city of a longer name without a blank.
        after = torch.where((node == length) & of(WORD), LEFT, after)
        after = torch.where((node == length) & ~of(WORD) | (before == SAID), SAID, after)
        after = torch.where((before == THINKING) | (of(THINKS) & (before == 0)), THINKING, after)
        after = torch.where(of(THOUGHT), AFTER_THOUGHT, after)
        return torch.where(to >= 0, to + torch.where(quoted | (before == AFTER_COLON), QUOTED, 0), after)

    def left(self, positions: dict[int, int]) -> list[int]:
        """The slots whose answer was not the edit's: begun by no token up to its position, or left for another.

        positions: by slot, of the last token that was taken in.
        """
        followed = {slot: at for slot, at in positions.items() if slot in self._plans}
        if not followed:
            return []
        slots, at = (torch.tensor(list(part), dtype=torch.int64, device="cpu") for part in zip(*followed.items()))
        states = self._states[slots.to(self.device), at.to(self.device) % _RECENT].tolist()
        return [slot for slot, state in zip(followed, states) if state < 0 and state != SAID]
