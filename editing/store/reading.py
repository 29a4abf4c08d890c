"""Reading a ledger: every byte that is handed out was checked."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CorrigendaError
from .entries import LARGEST_BODY, next_chain, parsed
from .files import BESIDE, LEDGER_NAME, reason_of
from .folder import Folder
from .schema import LARGEST_TENSORS, STEP, Steps

START = bytes(32)
_ENDLESS = (1 << 63) - 1
_ENTRIES = "SELECT seq, kind, CASE WHEN length(body) <= ? THEN body END, chain FROM entries WHERE"
"""A body that is too large is not fetched: parsed, it takes 20 times its size and more."""


class Entry(NamedTuple):
    """An entry that was read, its chain already checked."""

    seq: int
    kind: str
    body: dict[str, Any]


class LedgerReader:
    """The reading side of an open ledger: `count` entries were read, and `chain` is the last one's checksum."""

    def __init__(self, connection: sqlite3.Connection, folder: Folder | None) -> None:
        self.folder = folder
        self.count = 0
        self.chain = START
        self.closed = False
        self._connection = connection
        self._steps = Steps()
        connection.set_progress_handler(self._steps, STEP)

    @property
    def directory(self) -> Path | None:
        return None if self.folder is None else self.folder.path

    @property
    def name(self) -> str:
        """What to call it in a sentence."""
        return "the ledger" if self.directory is None else str(self.directory / LEDGER_NAME)

    @property
    def size(self) -> int:
        """Of its files, in bytes: what it says cannot take more."""
        if self.closed:
            raise CorrigendaError(
                f"{self.name} was closed: what was not read by then cannot be, nor anything written; open it again."
            )
        if self.folder is None:
            (pages,), (size,) = (
                self._connection.execute(f"PRAGMA page_{what}").fetchone() for what in ("count", "size")
            )
            return pages * size
        return sum(found.st_size for name in (LEDGER_NAME, BESIDE[0]) if (found := self.folder.status(name)))

    def entries(self, after: int = 0, until: int | None = None) -> Iterator[Entry]:
        """The entries from `after` on, which must be the last one read before; moves `count` and `chain` along.

        until: the last one to read; None: to the end.
        """
        if after not in (0, self.count):
            raise ValueError(f"entries are read from the start or from {self.count} on, not from {after}")
        count, chain = (self.count, self.chain) if after else (0, START)
        last = _ENDLESS if until is None else until
        rows = self._rows(f"{_ENTRIES} seq > ? AND seq <= ? ORDER BY seq", (LARGEST_BODY, after, last))
        for seq, kind, body, found in rows:
            if seq != count + 1:
                raise self._damaged(f"entry {count + 1} is missing")
            entry, chain = self._linked(chain, seq, kind, body, found)
            count = seq
            yield entry
        self.count, self.chain = count, chain

    def entry(self, seq: int) -> Entry:
        """One entry, which fits the one before it. What came before that is not looked at."""
        rows = list(self._rows(f"{_ENTRIES} seq IN (?, ?) ORDER BY seq", (LARGEST_BODY, seq - 1, seq)))
        if not rows or rows[-1][0] != seq or len(rows) != (2 if seq > 1 else 1):
            raise self._damaged(f"entry {seq} is missing")
        return self._linked(rows[0][3] if seq > 1 else START, *rows[-1])[0]

    def first(self, kind: str) -> Entry | None:
        """The first entry of a kind."""
        found = [seq for (seq,) in self._rows("SELECT min(seq) FROM entries WHERE kind = ?", (kind,))]
        return None if found == [None] else self.entry(found[0])

    def _linked(self, before: bytes, seq: int, kind: str, body: bytes, chain: bytes) -> tuple[Entry, bytes]:
        """An entry as it was read, and its link in the chain, which must fit the link before it."""
        if body is None:
            raise self._damaged(f"entry {seq} is larger than any that is written")
        if not isinstance(kind, str) or not isinstance(body, bytes):
            raise self._damaged(f"entry {seq} is not one that was written")
        if not isinstance(before, bytes) or next_chain(before, seq, kind, body) != chain:
            raise self._damaged(f"entry {seq} does not match its checksum")
        return Entry(seq, kind, self._parsed(seq, body)), chain

    def tensors(self, entry: int, expected: dict[str, Any]) -> bytes:
        """The tensors of an entry, which must have the size and the SHA-256 that its body says."""
        size = expected.get("bytes")
        if not isinstance(size, int) or not 0 <= size <= min(self.size, LARGEST_TENSORS):
            raise self._damaged(f"the tensors of entry {entry} have no possible size")
        # The length first: what is not the size that was written is not read.
        found = list(self._rows("SELECT data FROM tensors WHERE seq = ? AND length(data) = ?", (entry, size)))
        if not found:
            raise self._damaged(f"the tensors of entry {entry} are missing or cut")
        ((data,),) = found
        if not isinstance(data, bytes) or hashlib.sha256(data).hexdigest() != expected.get("sha256"):
            raise self._damaged(f"the tensors of entry {entry} do not match their checksum")
        return data

    def check_sizes(self, expected: Mapping[int, int]) -> None:
        """Raise unless each of these entries has tensors of that many bytes, which are not read."""
        missing = dict(expected)
        # As many as there may be: the pages of a damaged table can lead in a circle.
        for seq, size in self._rows("SELECT seq, length(data) FROM tensors ORDER BY seq LIMIT ?", (self.count,)):
            if missing.get(seq) == size:
                del missing[seq]
        if missing:
            raise self._damaged(f"the tensors of entry {min(missing)} are missing or cut")

    def owners(self) -> list[int]:
        """The entries that have tensors."""
        found: list[int] = []
        for (seq,) in self._rows("SELECT seq FROM tensors ORDER BY seq"):
            # The pages of a damaged table can lead in a circle, so that its rows have no end.
            if found and seq <= found[-1]:
                raise self._damaged("its tensors are out of order")
            found.append(seq)
        return found

    def check_structure(self) -> None:
        """Raise unless the pages of the entries hang together: those of a damaged table can lead in circles."""
        found = self.integrity("entries") if sqlite3.sqlite_version_info >= (3, 33) else None
        if found is None and any(self._rows("SELECT 1 FROM entries WHERE seq < 1 LIMIT 1")):
            found = "an entry before the first one"
        if found is not None:
            raise self._damaged(f"its structure does not hold ({found})")

    def check_claim(self, claimed: int) -> None:
        """Raise where entries say that there are more bytes of tensors than the file has of anything."""
        if claimed > self.size:
            raise self._damaged("it says that there are more tensors than it holds")

    def holds(self, entries: int, chain: bytes) -> bool:
        """Whether entry number `entries` is here with this checksum."""
        found = list(self._rows("SELECT chain FROM entries WHERE seq = ?", (entries,))) if entries else [(START,)]
        return found == [(chain,)]

    def integrity(self, table: str | None = None) -> str | None:
        """What SQLite finds wrong with the file's structure, or with that of one table, if anything."""
        found = [str(text) for (text,) in self._rows(f"PRAGMA integrity_check({table or 3})")]
        return None if found == ["ok"] else "; ".join(line for text in found for line in text.splitlines())

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Within: all reads see one moment, whatever a writer does meanwhile."""
        with self._sentences():
            self._connection.execute("BEGIN")
        try:
            yield
        finally:
            with self._sentences():
                self._connection.execute("COMMIT")

    def _rows(self, query: str, arguments: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        with self._sentences():
            # Not `yield from`: that would close the cursor of a read left off, maybe after the connection.
            for row in self._connection.execute(query, arguments):  # noqa: UP028
                yield row

    def _parsed(self, seq: int, body: bytes) -> dict[str, Any]:
        found = parsed(body)
        if found is None:
            raise self._damaged(f"entry {seq} is not a JSON object that this project writes")
        return found

    def _damaged(self, what: str) -> CorrigendaError:
        return CorrigendaError(
            f"{self.name} is damaged: {what}; restore it from a copy, or run `corrigenda repair` to keep what is whole."
        )

    @contextlib.contextmanager
    def _sentences(self, writing: bool = False) -> Iterator[None]:
        """Within: an error of SQLite becomes one that a user can read."""
        try:
            self._steps.begin(self.size)
            yield
        except (sqlite3.Error, OverflowError, MemoryError) as error:
            lost = " nothing was added and nothing is lost" if writing else " run `corrigenda repair` if it is damaged"
            raise CorrigendaError(
                f"{self.name} cannot be {'written' if writing else 'read'}: {reason_of(error)};{lost}."
            ) from error
