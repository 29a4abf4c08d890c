"""Banks in which only some edits have their rows: those that were asked for last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Hashable
from dataclasses import dataclass

from ..errors import CorrigendaError
from .row_banks import RowBanks
from .row_form import Rows


@dataclass
class PagingCounts:
    """What paging has done: edits that were asked for and there (`hits`), or had to be read first (`reads`), edits that
    made room for others (`evictions`), and bytes that came into the banks."""

    hits: int = 0
    reads: int = 0
    evictions: int = 0
    bytes_read: int = 0


class PagedBanks:
    """Slots of `banks` by the names of edits.

    pages: how many pages of 8 rows there are for them; the buffers are then made once and keep their addresses. What
    was asked for longest ago makes room. None: no limit, and nothing does. counts: where several count together.
    """

    def __init__(self, banks: RowBanks, counts: PagingCounts | None = None) -> None:
        self.banks = banks
        self.pages: int | None = None
        self.counts = PagingCounts() if counts is None else counts
        self._slots: OrderedDict[Hashable, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, name: Hashable) -> bool:
        return name in self._slots

    def limit(self, edits: int, rows: int, longest: int) -> None:
        """Room for this many edits of `rows` rows at a time, or for fewer that have up to `longest`."""
        self.pages = self.banks.set_aside(edits, rows, longest)

    def slot(self, name: Hashable) -> int:
        """Where the rows of an edit are that is here."""
        return self._slots[name]

    def bring(self, name: Hashable, read: Callable[[], Rows], kept: Container[Hashable]) -> int:
        """Where the rows of an edit are, read where they are not here. Those `kept` make no room for them.

        Raises CorrigendaError where there is none: nothing is changed then.
        """
        if name in self._slots:
            self._slots.move_to_end(name)
            self.counts.hits += 1
            return self._slots[name]
        rows = read()
        self._make_room(self.banks.pages_of(len(rows[0])), kept)
        self.counts.reads += 1
        self.counts.bytes_read += sum(part.nbytes for part in rows if part is not None)
        return self.put(name, rows)

    def put(self, name: Hashable, rows: Rows) -> int:
        """Store rows for which there is room."""
        slot = self._slots[name] = self.banks.put(*rows)
        return slot

    def drop(self, name: Hashable) -> None:
        """Give an edit's room back, if it has any."""
        if name in self._slots:
            self.banks.free(self._slots.pop(name))

    def _make_room(self, pages: int, kept: Container[Hashable]) -> None:
        if self.pages is None:
            return
        missing = self.banks.pages_in_use + pages - self.pages
        leaving = []
        for name, slot in self._slots.items():  # the one that was asked for longest ago first
            if missing <= 0:
                break
            if name not in kept:
                leaving.append(name)
                missing -= self.banks.pages_of(int(self.banks.lengths[slot]))
        if missing > 0:
            raise CorrigendaError(
                f"The edits that are asked for at once have more than the {8 * self.pages} rows that there is room "
                "for: ask about fewer at a time, or give a larger `resident`."
            )
        for name in leaving:
            self.drop(name)
        self.counts.evictions += len(leaving)
