"""Writing with several processes: each solves batches in turn, one of them writes; what is written has one's bits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch.distributed as dist

from ..edits.edit import Edit
from ..errors import CorrigendaError
from ..methods.method import Method
from ..methods.record import Solved, on_cpu

_END = None
"""What the writing process sends when it has no more batches."""


def check_independent(method: Method) -> None:
    """Raise where a method's edits depend on those before them."""
    if not method.independent:
        raise CorrigendaError(
            f'Each edit of the method "{method.config.method}" depends on those before it: write them with one process.'
        )


class SolvedAhead:
    """In the process of rank 0: batches are solved by all ranks before they are asked for.

    upcoming: batches in the order in which they will come, as far as is known; one that comes otherwise (another
    process wrote meanwhile, a stored edit is kept) is solved here alone, so a wrong guess costs time and nothing else.
    """

    def __init__(self, method: Method, group: dist.ProcessGroup, upcoming: Sequence[Sequence[Edit]]) -> None:
        check_independent(method)
        self._solve = method.solve
        self._group = group
        self._upcoming = [list(batch) for batch in upcoming if batch]
        self._found: dict[int, list[Solved]] = {}
        self._next = 0

    def solve(self, edits: Sequence[Edit]) -> list[Solved]:
        """As `Method.solve`."""
        wanted = list(edits)
        for place in range(self._next, len(self._upcoming)):
            if self._upcoming[place] == wanted:
                self._next = place + 1
                if place not in self._found:
                    self._round(place)
                found = self._found.pop(place, None)
                return self._solve(edits) if found is None else found
        return self._solve(edits)

    def _round(self, first: int) -> None:
        ranks = self._group.size()
        batches = [self._upcoming[place : place + 1] for place in range(first, first + ranks)]
        dist.broadcast_object_list([batches], group=self._group, group_src=0)
        found: list[Any] = [None] * ranks
        dist.gather_object(_solved(self._solve, batches[0]), found, group=self._group, group_dst=0)
        self._found = {first + rank: each for rank, each in enumerate(found) if each is not None}

    def end(self) -> None:
        """Let the others go."""
        dist.broadcast_object_list([_END], group=self._group, group_src=0)


def solve_for_another(method: Method, group: dist.ProcessGroup) -> int:
    """In a process of another rank: solve what rank 0 sends until it has no more; how many edits that were."""
    check_independent(method)
    rank, count = group.rank(), 0
    while True:
        received: list[Any] = [_END]
        dist.broadcast_object_list(received, group=group, group_src=0)
        if received[0] is _END:
            return count
        found = _solved(method.solve, received[0][rank])
        count += len(found or ())
        dist.gather_object(found, group=group, group_dst=0)


def _solved(solve: Callable[[Sequence[Edit]], list[Solved]], batch: Sequence[Sequence[Edit]]) -> list[Solved] | None:
    """A batch solved, its tensors on the CPU; None where it cannot be, which rank 0 finds out for itself."""
    if not batch:
        return None
    try:
        return on_cpu(solve(batch[0]))
    except CorrigendaError:
        return None


@contextlib.contextmanager
def solved_by_all(method: Method, group: dist.ProcessGroup, upcoming: Sequence[Sequence[Edit]]) -> Iterator[None]:
    """Within, in the process of rank 0: `method.solve` has all ranks solve."""
    ahead = SolvedAhead(method, group, upcoming)
    method.solve = ahead.solve  # type: ignore[method-assign]
    try:
        yield
    finally:
        del method.solve
        ahead.end()
