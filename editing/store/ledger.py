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
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CorrigendaError
from .entries import encoded, next_chain
from .files import (
    ALONE,
    BESIDE,
    HEAD_NAME,
    LEDGER_NAME,
    STAGING,
    access_mode,
    check_files,
    has_log,
    read_head,
    reason_of,
    refuse_non_empty,
)
from .folder import Folder
from .reading import START, LedgerReader
from .schema import LARGEST_TENSORS, check_layout, connect, guard, lay_out, restrict

_SHARED = 1 << 15
"""What the file that readers share has at least, in bytes; a smaller one could not be made."""


class New(NamedTuple):
    """An entry to append; `tensors` are the bytes of a safetensors file."""

    kind: str
    body: dict[str, Any]
    tensors: bytes | None = None


class Ledger(LedgerReader):
    """An open ledger; writing needs the folder's writer lock."""

    def __init__(self, connection: sqlite3.Connection, folder: Folder | None, write: bool) -> None:
        super().__init__(connection, folder)
        self.writable = write
        self.notices: list[str] = []
        """Sentences on how it had to be opened."""
        self._gives_back = True

    # Opening

    @classmethod
    def temporary(cls) -> Ledger:
        """A ledger of its own that is gone when it is closed; SQLite keeps it on disk where it grows large."""
        connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        guard(connection)
        lay_out(connection)
        restrict(connection)
        return cls(connection, None, write=True)

    @classmethod
    def create(cls, directory: str | Path, fill: Callable[[Ledger], Any]) -> Ledger:
        """A ledger in a new or empty folder, with what `fill` writes into it, open for writing.

        It is made beside the folder, or in one that is there, and moved into place: a kill on the way leaves no part of
        a ledger that would be read.
        """
        path = Path(directory)
        refuse_non_empty(path)
        staging = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            there = path.is_dir()
            prefix = STAGING if there else f".{path.name}."
            staging = Path(tempfile.mkdtemp(prefix=prefix, dir=path if there else path.parent))
            with Folder(staging) as folder:
                made = cls._filled(folder, fill)
                folder.write(HEAD_NAME, made.head())
                folder.flush()
            if there:  # it keeps its place: somebody may stand in it
                with Folder(path) as folder:
                    folder.lock()
                    refuse_non_empty(path)
                    for name in (HEAD_NAME, LEDGER_NAME):  # the ledger last: with it the folder holds edits
                        folder.take(staging / name, name)
                    folder.flush()
                    for left in path.glob(f"{STAGING}*"):
                        shutil.rmtree(left, ignore_errors=True)
            else:
                staging.chmod(0o755)  # mkdtemp makes what only its owner may read
                os.replace(staging, path)
                with Folder(path.parent) as folder:
                    folder.flush()
        except (OSError, sqlite3.Error) as error:
            raise CorrigendaError(f"The edits could not be saved in {path}: {reason_of(error)}.") from error
        finally:
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)
        return cls.open(path, write=True)

    @classmethod
    def _filled(cls, folder: Folder, fill: Callable[[Ledger], None]) -> Ledger:
        """A new ledger's file, closed."""
        os.close(folder.make(LEDGER_NAME))
        connection = connect(folder, "mode=rw")
        try:
            lay_out(connection)
            restrict(connection)
            ledger = cls(connection, None, write=True)
            fill(ledger)
            _write_ahead(connection)
        finally:
            connection.close()
        return ledger

    @classmethod
    def open(cls, directory: str | Path | Folder, *, write: bool = False, head: bool = True) -> Ledger:
        """The ledger of a folder; with `write`, as its only writer.

        A folder that is handed in open stays so, and whoever did that has its lock. head: whether the ledger must hold
        what `head.json` names. Raises CorrigendaError where there is no ledger, it is of a newer version, or it is not
        what was written.
        """
        with contextlib.ExitStack() as undone:
            if isinstance(directory, Folder):
                folder = directory
            else:
                folder = Folder(directory)
                undone.callback(folder.close)
                if write:
                    folder.lock()
            check_files(folder)
            end = read_head(folder) if head else None
            try:
                ledger = cls._opened(folder, write)
                undone.callback(ledger._connection.close)
                if end is not None:
                    ledger._check_head(*end)
            except sqlite3.Error as error:
                raise CorrigendaError(f"{folder.path / LEDGER_NAME} cannot be read: {reason_of(error)}.") from error
            undone.pop_all()
        if folder is directory:
            ledger._gives_back = False
        return ledger

    @classmethod
    def _opened(cls, folder: Folder, write: bool) -> Ledger:
        options = access_mode(folder, write)
        try:
            return cls._connected(folder, options, write)
        except sqlite3.OperationalError as error:
            shared = folder.status(BESIDE[1])
            if write or options == ALONE or (shared is not None and shared.st_size >= _SHARED):
                raise
            # SQLite could not make what its readers share: nobody else has the ledger open, so it does without.
            ledger = cls._connected(folder, "mode=rw" if has_log(folder) else ALONE, write, alone=True)
            ledger.notices.append(
                f"{folder.path} takes no more files ({reason_of(error)}): it was read as it is, and cannot be changed."
            )
            return ledger

    @classmethod
    def _connected(cls, folder: Folder, options: str, write: bool, alone: bool = False) -> Ledger:
        connection = connect(folder, options)
        try:
            ledger = cls(connection, folder, write)
            ledger._steps.begin(ledger.size)
            restrict(connection)
            if alone:  # what readers share is then in this one's memory
                connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            check_layout(connection, ledger.name)
            if write:
                _write_ahead(connection)
                connection.execute("PRAGMA synchronous = FULL")
        except BaseException:
            connection.close()
            raise
        return ledger

    def _check_head(self, entries: int, chain: bytes) -> None:
        """Raise unless the ledger contains the entry that `head.json` names."""
        if not self.holds(entries, chain):
            raise CorrigendaError(
                f"{self.name} does not hold entry {entries} as {HEAD_NAME} names it: one of the two is damaged or "
                "was cut back; run `corrigenda repair` to keep what is whole."
            )

    def close(self) -> None:
        """Give the folder back: its write-ahead log is folded into the ledger."""
        self.closed = True
        self._connection.close()
        self.writable = self.writable and self.folder is None
        if self.folder is not None and self._gives_back:
            self.folder.close()

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
                if (last or (0, START)) != (self.count, self.chain):
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
                    written = encoded(body)
                    if len(new.tensors or b"") > LARGEST_TENSORS:
                        raise CorrigendaError(
                            f"An edit's tensors are larger than {self.name} takes; nothing was added."
                        )
                    chain = next_chain(chain, count, new.kind, written)
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
        if self.folder is not None:
            # Not forced to the disk: a head that lags behind still is one that the ledger contains.
            with contextlib.suppress(OSError):
                self.folder.write(HEAD_NAME, self.head())

    def head(self) -> bytes:
        """What `head.json` says when it is up to date."""
        return json.dumps({"entries": self.count, "chain": self.chain.hex()}).encode() + b"\n"

    def vacuum(self) -> None:
        """Give the space of what was dropped back to the file system."""
        with self._sentences(writing=True):
            check_layout(self._connection, self.name)  # VACUUM runs statements of SQLite's own, so all are let run
            self._connection.set_authorizer(None)
            try:
                self._connection.execute("VACUUM")
            finally:
                restrict(self._connection)
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def copy_to(self, other: Ledger) -> None:
        """Make an empty ledger a copy of this one, which must have been read to its end."""
        with self._sentences():
            self._connection.backup(other._connection)
        other.count, other.chain = self.count, self.chain


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Have transactions written into a log beside the database, so that readers see the last whole one."""
    connection.execute("PRAGMA journal_mode = WAL")
