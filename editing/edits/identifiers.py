"""Ids of edits: those that repeat are told apart by a number, "66" and "66#2"."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator

_NUMBERED = re.compile(r"#\d+\Z")


def numbered_ids(name: str) -> Iterator[str]:
    """What edits of one id are called: "66", "66#2", "66#3", ...; whichever of these `name` is."""
    base = _NUMBERED.sub("", name)
    yield base
    yield from (f"{base}#{number}" for number in itertools.count(2))


class DistinctIds:
    """Gives ids to edits, each once: their own, or another that is not `taken`."""

    def __init__(self, taken: Callable[[str], bool]) -> None:
        self._taken = taken
        self._given: set[str] = set()
        self._rest: dict[str, Iterator[str]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._given

    def own(self, name: str) -> str:
        """`name`, which is given away by now."""
        self._given.add(name)
        return name

    def first(self, names: Iterable[str]) -> str:
        """The first of `names` that is free."""
        return self.own(next(name for name in names if name not in self._given and not self._taken(name)))

    def another(self, name: str) -> str:
        """The next free id of `numbered_ids`, for an edit whose own, `name`, is another's."""
        base = _NUMBERED.sub("", name)
        return self.first(self._rest.setdefault(base, itertools.islice(numbered_ids(base), 1, None)))
