"""The ledger: an append-only list of entries in SQLite, each covered by a chain of checksums.

    entries  seq, kind, body (JSON), chain = SHA-256(the chain before, seq, kind, body)
    tensors  seq, data (safetensors): those of entry `seq`, whose body holds their SHA-256 and size

A transaction is one `append`: when it returns, its entries are on the disk. Beside the database stands `head.json`, the
number of the last entry and its chain: a ledger that was cut back to an earlier state no longer contains it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CorrigendaError
from .files import (
    HEAD_NAME,
    LEDGER_NAME,
    access_mode,
    check_files,
    flush_folder,
    read_head,
    reason_of,
    refuse_non_empty,
)
from .lock import WriterLock
from .schema import LARGEST_TENSORS, check_layout, connect, guard, lay_out

_START = bytes(32)
LARGEST_BODY = 1 << 24
"""What an entry may say, in bytes of JSON."""

_ENTRIES = "SELECT seq, kind, CASE WHEN length(body) <= ? THEN body END, chain FROM entries WHERE"
"""A body that is too large is not fetched: parsed, it takes 20 times its size and more."""


class New(NamedTuple):
    """An entry to append; `tensors` are the bytes of a safetensors file."""

    kind: str
    body: dict[str, Any]
    tensors: bytes | None = None


class Entry(NamedTuple):
    """An entry that was read, its chain already checked."""

    seq: int
    kind: str
    body: dict[str, Any]


class Ledger:
    """An open ledger. Reading checks every byte that it hands out; writing needs the folder's writer lock."""

    def __init__(self, connection: sqlite3.Connection, directory: Path | None, lock: WriterLock | None) -> None:
        self.directory = directory
        self.count = 0
        self.chain = _START
        self._connection = connection
        self._lock = lock

    @property
    def name(self) -> str:
        """What to call it in a sentence."""
        return "the ledger" if self.directory is None else str(self.directory / LEDGER_NAME)

    @property
    def writable(self) -> bool:
        """Whether this is the one who may append."""
        return self.directory is None or self._lock is not None

    # Opening

    @classmethod
    def temporary(cls) -> Ledger:
        """A ledger of its own that is gone when it is closed; SQLite keeps it on disk where it grows large."""
        connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        guard(connection)
        lay_out(connection)
        return cls(connection, None, None)

    @classmethod
    def create(cls, directory: str | Path, fill: Callable[[Ledger], Any]) -> Ledger:
        """A ledger in a new or empty folder, with what `fill` writes into it, open for writing.

        It is made beside the folder and moved into place: a kill on the way leaves no part of a ledger there.
        """
        path = Path(directory)
        refuse_non_empty(path)
        staging = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
            connection = connect(staging / LEDGER_NAME, "mode=rwc")
            try:
                lay_out(connection)
                ledger = cls(connection, None, None)
                fill(ledger)
                connection.execute("PRAGMA journal_mode = WAL")
            finally:
                connection.close()
            (staging / HEAD_NAME).write_text(ledger._head_text(), encoding="utf-8")
            staging.chmod(0o755)  # mkdtemp makes what only its owner may read
            if path.is_dir():
                path.rmdir()
            os.replace(staging, path)
            flush_folder(path.parent)
        except (OSError, sqlite3.Error) as error:
            raise CorrigendaError(f"The edits could not be saved in {path}: {reason_of(error)}.") from error
        finally:
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)
        return cls.open(path, write=True)

    @classmethod
    def open(cls, directory: str | Path, *, write: bool = False) -> Ledger:
        """The ledger of a folder; with `write`, as its only writer.

        Raises CorrigendaError where there is none, it is of a newer version, or it is not what was written.
        """
        path = Path(directory)
        check_files(path)
        head = read_head(path)
        lock = WriterLock(path) if write else None
        connection = None
        try:
            connection = connect(path / LEDGER_NAME, access_mode(path, write))
            check_layout(connection, path / LEDGER_NAME)
            if write:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
            ledger = cls(connection, path, lock)
            ledger._check_head(head)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if lock is not None:
                lock.release()
            if isinstance(error, sqlite3.Error):
                raise CorrigendaError(f"{path / LEDGER_NAME} cannot be read: {reason_of(error)}.") from error
            raise
        return ledger

    def close(self) -> None:
        """Give the folder back: its write-ahead log is folded into the ledger."""
        self._connection.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # Reading

    def entries(self, after: int = 0) -> Iterator[Entry]:
        """The entries from `after` on, which must be the last one read before; moves `count` and `chain` along."""
        if after not in (0, self.count):
            raise ValueError(f"entries are read from the start or from {self.count} on, not from {after}")
        count, chain = (self.count, self.chain) if after else (0, _START)
        for seq, kind, body, found in self._rows(f"{_ENTRIES} seq > ? ORDER BY seq", (LARGEST_BODY, after)):
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
        return self._linked(rows[0][3] if seq > 1 else _START, *rows[-1])[0]

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
        if not isinstance(before, bytes) or _next_chain(before, seq, kind, body) != chain:
            raise self._damaged(f"entry {seq} does not match its checksum")
        return Entry(seq, kind, self._parsed(seq, body)), chain

    def tensors(self, entry: int, expected: dict[str, Any]) -> bytes:
        """The tensors of an entry, which must have the size and the SHA-256 that its body says."""
        size = expected.get("bytes")
        if not isinstance(size, int) or not 0 <= size <= LARGEST_TENSORS:
            raise self._damaged(f"the tensors of entry {entry} have no possible size")
        # The length first: what is not the size that was written is not read.
        found = list(self._rows("SELECT data FROM tensors WHERE seq = ? AND length(data) = ?", (entry, size)))
        if not found:
            raise self._damaged(f"the tensors of entry {entry} are missing or cut")
        ((data,),) = found
        if not isinstance(data, bytes) or hashlib.sha256(data).hexdigest() != expected.get("sha256"):
            raise self._damaged(f"the tensors of entry {entry} do not match their checksum")
        return data

    def owners(self) -> list[int]:
        """The entries that have tensors."""
        found: list[int] = []
        for (seq,) in self._rows("SELECT seq FROM tensors ORDER BY seq"):
            # The pages of a damaged table can lead in a circle, so that its rows have no end.
            if found and seq <= found[-1]:
                raise self._damaged("its tensors are out of order")
            found.append(seq)
        return found

    def integrity(self) -> str | None:
        """What SQLite finds wrong with the file's structure, if anything."""
        found = [str(text) for (text,) in self._rows("PRAGMA integrity_check(3)")]
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

    # Writing

    def append(self, entries: Iterable[New], *, dropping: Sequence[int] = ()) -> list[int]:
        """Write entries in one transaction, and drop the tensors of others; returns their numbers.

        All entries before must have been read: another writer's would make this one's decisions stale.
        """
        if not self.writable:
            raise CorrigendaError(f"{self.name} is open for reading alone: open it as its writer to change it.")
        with self._sentences(writing=True):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                last = self._connection.execute("SELECT seq, chain FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
                if (last or (0, _START)) != (self.count, self.chain):
                    raise CorrigendaError(
                        f"{self.name} was written by another process meanwhile: nothing was added, open it again."
                    )
                count, chain = self.count, self.chain
                for new in entries:
                    count += 1
                    body = dict(new.body)
                    if new.tensors is not None:
                        body["tensors"] = {"sha256": hashlib.sha256(new.tensors).hexdigest(), "bytes": len(new.tensors)}
                        self._connection.execute("INSERT INTO tensors VALUES (?, ?)", (count, new.tensors))
                    written = _encoded(body)
                    if len(written) > LARGEST_BODY or len(new.tensors or b"") > LARGEST_TENSORS:
                        raise CorrigendaError(f"An entry is larger than {self.name} takes; nothing was added.")
                    chain = _next_chain(chain, count, new.kind, written)
                    self._connection.execute(
                        "INSERT INTO entries VALUES (?, ?, ?, ?)", (count, new.kind, written, chain)
                    )
                self._connection.executemany("DELETE FROM tensors WHERE seq = ?", [(seq,) for seq in dropping])
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        first = self.count + 1
        self.count, self.chain = count, chain
        self.write_head()
        return list(range(first, count + 1))

    def write_head(self) -> None:
        """Say beside the ledger how far it goes; where that fails, the ledger is whole all the same."""
        if self.directory is None:
            return
        # Not forced to the disk: a head that lags behind still is one that the ledger contains.
        staged = self.directory / f".{HEAD_NAME}"
        with contextlib.suppress(OSError):
            staged.write_text(self._head_text(), encoding="utf-8")
            os.replace(staged, self.directory / HEAD_NAME)

    def _head_text(self) -> str:
        return json.dumps({"entries": self.count, "chain": self.chain.hex()}) + "\n"

    def vacuum(self) -> None:
        """Give the space of what was dropped back to the file system."""
        with self._sentences(writing=True):
            self._connection.execute("VACUUM")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def copy_to(self, other: Ledger) -> None:
        """Make an empty ledger a copy of this one, which must have been read to its end."""
        with self._sentences():
            self._connection.backup(other._connection)
        other.count, other.chain = self.count, self.chain

    # Checks

    def _rows(self, query: str, arguments: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        with self._sentences():
            # Not `yield from`: that would close the cursor of a read left off, maybe after the connection.
            for row in self._connection.execute(query, arguments):  # noqa: UP028
                yield row

    def _parsed(self, seq: int, body: bytes) -> dict[str, Any]:
        try:
            parsed = json.loads(body)
        except (ValueError, RecursionError):
            parsed = None
        if not isinstance(parsed, dict):
            raise self._damaged(f"entry {seq} is not a JSON object")
        return parsed

    def _check_head(self, head: tuple[int, bytes] | None) -> None:
        """Raise unless the ledger contains the entry that `head.json` names."""
        if head is None:  # a new ledger has none, and `verify` asks for one
            return
        entries, chain = head
        found = list(self._rows("SELECT chain FROM entries WHERE seq = ?", (entries,))) if entries else [(_START,)]
        if found != [(chain,)]:
            raise CorrigendaError(
                f"{self.name} does not hold entry {entries} as {HEAD_NAME} names it: one of the two is damaged or "
                "was cut back; run `corrigenda repair` to keep what is whole."
            )

    def _damaged(self, what: str) -> CorrigendaError:
        return CorrigendaError(
            f"{self.name} is damaged: {what}; restore it from a copy, or run `corrigenda repair` to keep what is whole."
        )

    @contextlib.contextmanager
    def _sentences(self, writing: bool = False) -> Iterator[None]:
        """Within: an error of SQLite becomes one that a user can read."""
        try:
            yield
        except (sqlite3.Error, OverflowError, MemoryError) as error:
            lost = " nothing was added and nothing is lost" if writing else " run `corrigenda repair` if it is damaged"
            raise CorrigendaError(
                f"{self.name} cannot be {'written' if writing else 'read'}: {reason_of(error)};{lost}."
            ) from error


def _encoded(body: dict[str, Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, sort_keys=True).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise CorrigendaError(f"What JSON cannot hold cannot be recorded: {reason_of(error)}.") from None


def _next_chain(chain: bytes, seq: int, kind: str, body: bytes) -> bytes:
    named = kind.encode(errors="surrogatepass")
    head = seq.to_bytes(8, "little", signed=True) + len(named).to_bytes(8, "little")
    return hashlib.sha256(chain + head + named + body).digest()
