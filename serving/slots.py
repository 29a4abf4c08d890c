"""Which request has which slot of the routing context, and what each pass of a packed batch tells the layer."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

import numpy as np
import torch

from ..editing.edits.answer_start import AnswerPlan
from ..editing.edits.spelling import Vocabulary
from ..editing.errors import CorrigendaError
from ..editing.routers.context import RoutingContext


class Slots:
    """A slot for every request in flight, from its first pass to its last.

    A stack packs tokens of many requests into one row, in an order that changes from pass to pass; it says whose they
    are and at which positions. From that alone follows where the memory acts: at the last prompt token and behind it,
    however the prompt was cut, shared or computed anew.

    captured: passes may be captured in CUDA graphs, so the layer must run in each of them; by default on a GPU. Where
    they are not, it does nothing in a pass without an edit. vocabulary: by which answers are followed; reading it takes
    a second, which is no pass's.
    """

    def __init__(
        self,
        context: RoutingContext,
        requests: int,
        tokens: int,
        captured: bool | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        context.reserve(tokens, requests)
        self.context = context
        self._vocabulary = vocabulary
        self._slot: dict[str, int] = {}
        self._free = list(range(requests, 0, -1))
        self._prompt: np.ndarray = np.zeros(requests + 1, dtype=np.int64)
        self._route: np.ndarray = np.full(requests + 1, -1, dtype=np.int64)
        self._decoding: tuple[list[str], np.ndarray] | None = None  # of the pass before: requests, positions
        self._seen: tuple[torch.Tensor, torch.cuda.Event] | None = None  # a copy of `stopped`, under way
        self._started: set[int] = set()  # slots that were taken since that copy began
        self._always = context.device.type != "cpu" if captured is None else captured
        context.active = self._always
        context.tells_rows |= self._always

    def __contains__(self, request: str) -> bool:
        return request in self._slot

    def __len__(self) -> int:
        return len(self._slot)

    @property
    def free(self) -> int:
        """How many more requests can start."""
        return len(self._free)

    def start(
        self, request: str, prompt_tokens: int, route: int, plan: AnswerPlan | None = None, said: Sequence[int] = ()
    ) -> None:
        """Begin a request whose prompt has this many tokens, answered by the edit at the place `route`, or by none.

        plan: how its answer can be said; without one the rows are read at every token from the prompt's last on.
        said: what follows the prompt by now, where passes have taken it in already.
        """
        if request in self._slot:
            self.end(request)
        if not self._free:
            raise CorrigendaError(f"More than {len(self._prompt) - 1} requests are in flight: none ends, or too many.")
        slot = self._free.pop()
        self._slot[request] = slot
        self._prompt[slot] = prompt_tokens
        self._route[slot] = route
        self.context.route[slot] = route
        self.context.stopped[slot] = 0
        self._started.add(slot)
        self._decoding = None
        if self._vocabulary is not None:
            self.context.follow(slot, plan, prompt_tokens - 1, lambda: self._vocabulary.kinds, said)

    def end(self, request: str) -> None:
        """Give a request's slot back."""
        slot = self._slot.pop(request)
        self._route[slot] = -1
        self.context.route[slot] = -1
        if self.context.progress is not None:
            self.context.progress.end(slot)
        self._free.append(slot)
        self._decoding = None

    def keep(self, requests: Container[str]) -> None:
        """End every request that is not among these."""
        for request in [request for request in self._slot if request not in requests]:
            self.end(request)

    def stopped(self, wait: bool = True) -> list[str]:
        """The requests in flight whose edit the layer has left out at some token.

        Without `wait` a GPU is not waited for: then it is what an earlier pass has left.
        """
        if wait or self.context.device.type == "cpu":
            counts = self.context.stopped.tolist() if self.context.active else []
            return [request for request, slot in self._slot.items() if counts and counts[slot]]
        found: list[str] = []
        if self._seen is not None:
            seen, copied = self._seen
            if not copied.query():
                return found
            counts = seen.tolist()
            found = [name for name, slot in self._slot.items() if counts[slot] and slot not in self._started]
        seen = torch.empty_like(self.context.stopped, device="cpu", pin_memory=True)
        seen.copy_(self.context.stopped, non_blocking=True)
        self._seen = seen, torch.cuda.Event()
        self._seen[1].record()
        self._started.clear()
        return found

    def edited(self, requests: Iterable[str]) -> list[str]:
        """Those of these requests that an edit answers."""
        return [request for request in requests if self._route[self._slot.get(request, 0)] >= 0]

    def places(self) -> set[int]:
        """The places of the edits that requests in flight are answered by."""
        return {int(place) for place in self._route if place >= 0}

    def describe(
        self, requests: Sequence[str], past: np.ndarray, lengths: np.ndarray, tokens: torch.Tensor | None = None
    ) -> None:
        """Tell the layer about the next pass: of each request, `lengths[i]` tokens from position `past[i]` on.

        tokens: the ids of them all, packed, on whichever device; more may follow. Needed where answers are followed.
        """
        slots = np.fromiter((self._slot[request] for request in requests), dtype=np.int64, count=len(requests))
        if not self._always and not (self._route[slots] >= 0).any():
            self.context.stop()
            self._decoding = None
            return
        decoding = bool((lengths == 1).all() and (past >= self._prompt[slots]).all())
        progress = self.context.progress
        if progress and tokens is None:
            raise CorrigendaError("The tokens of a pass were not told, by which answers are followed.")
        before, self._decoding = self._decoding, (list(requests), past) if decoding else None
        if decoding and before is not None and before[0] == list(requests) and (past == before[1] + 1).all():
            # The same tokens' successors: every buffer holds what it should but for where answers stand.
            if progress:
                progress.again(tokens.to(self.context.device), self.context.gate, self.context.row)
            return
        row: np.ndarray = np.repeat(np.arange(len(slots)), lengths)
        begin = np.cumsum(lengths) - lengths
        position = past[row] + np.arange(len(row)) - begin[row]
        last = self._prompt[slots][row] - 1
        told = slots[row].astype(np.int32), position >= last, position == last
        self.context.describe(*map(torch.from_numpy, told))
        if progress:
            self.context.advance(tokens, slots, past, lengths)
