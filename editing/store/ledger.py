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
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from ..errors import CorrigendaError
from .lock import WriterLock

LEDGER_NAME = "ledger.sqlite"
HEAD_NAME = "head.json"
SCHEMA_VERSION = 2
"""1 was a folder of JSON, JSON Lines and one safetensors file (`migrate.py`)."""

_SCHEMA = {
    "entries": "CREATE TABLE entries (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, body BLOB NOT NULL, "
    "chain BLOB NOT NULL)",
    "tensors": "CREATE TABLE tensors (seq INTEGER PRIMARY KEY, data BLOB NOT NULL)",
}
_APPLICATION_ID = 0x436F7272
_START = bytes(32)
LARGEST_BODY = 1 << 24
LARGEST_TENSORS = 1 << 30
"""What one entry may hold; a file that claims more is refused before anything is allocated."""


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
        _guard(connection)
        _lay_out(connection)
        return cls(connection, None, None)

    @classmethod
    def create(cls, directory: str | Path, fill: Callable[[Ledger], None]) -> Ledger:
        """A ledger in a new or empty folder, with what `fill` writes into it, open for writing.

        It is made beside the folder and moved into place: a kill on the way leaves no part of a ledger there.
        """
        path = Path(directory)
        refuse_non_empty(path)
        staging = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
            connection = _connect(staging / LEDGER_NAME, "mode=rwc")
            try:
                _lay_out(connection)
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
            _flush_folder(path.parent)
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
        try:
            connection = _connect(path / LEDGER_NAME, _mode(path, write))
            ledger = cls(connection, path, lock)
            with ledger._sentences():
                _check_layout(connection, path / LEDGER_NAME)
                if write:
                    connection.execute("PRAGMA journal_mode = WAL")
                    connection.execute("PRAGMA synchronous = FULL")
            ledger._check_head(head)
        except sqlite3.Error as error:
            if lock is not None:
                lock.release()
            raise CorrigendaError(f"{path / LEDGER_NAME} cannot be read: {reason_of(error)}.") from error
        except BaseException:
            if lock is not None:
                lock.release()
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
        rows = self._rows(
            "SELECT seq, kind, body, chain, length(body) FROM entries WHERE seq > ? ORDER BY seq", (after,)
        )
        for seq, kind, body, found, _ in rows:
            if seq != count + 1:
                raise self._damaged(f"entry {count + 1} is missing")
            if not isinstance(kind, str) or not isinstance(body, bytes):
                raise self._damaged(f"entry {seq} is not one that was written")
            chain = _next_chain(chain, seq, kind, body)
            if chain != found:
                raise self._damaged(f"entry {seq} does not match its checksum")
            count = seq
            yield Entry(seq, kind, self._parsed(seq, body))
        self.count, self.chain = count, chain

    def tensors(self, entry: int, expected: dict[str, Any]) -> bytes:
        """The tensors of an entry, which must have the size and the SHA-256 that its body says."""
        size = expected.get("bytes")
        if not isinstance(size, int) or not 0 <= size <= LARGEST_TENSORS:
            raise self._damaged(f"the tensors of entry {entry} have no possible size")
        found = list(self._rows("SELECT length(data) FROM tensors WHERE seq = ?", (entry,)))
        if found != [(size,)]:
            raise self._damaged(f"the tensors of entry {entry} are missing or cut")
        ((data,),) = self._rows("SELECT data FROM tensors WHERE seq = ?", (entry,))
        if not isinstance(data, bytes) or hashlib.sha256(data).hexdigest() != expected.get("sha256"):
            raise self._damaged(f"the tensors of entry {entry} do not match their checksum")
        return data

    def owners(self) -> list[int]:
        """The entries that have tensors."""
        return [seq for (seq,) in self._rows("SELECT seq FROM tensors ORDER BY seq")]

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


def refuse_non_empty(directory: str | Path) -> None:
    """Raise unless `directory` is a new or empty folder: saved edits are never overwritten."""
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise CorrigendaError(f"{path} is a file, not a folder to save edits in.")
    if path.is_dir() and any(path.iterdir()):
        raise CorrigendaError(f"The folder {path} is not empty: name a new one, or remove it first.")


def _flush_folder(path: Path) -> None:
    """Force a folder's list of names to the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_ledger(file: Path) -> bool:
    """Whether a file says of itself that it is a ledger of this project."""
    try:
        with file.open("rb") as opened:
            start = opened.read(100)
    except OSError:
        return False
    return start[:16] == b"SQLite format 3\0" and start[68:72] == _APPLICATION_ID.to_bytes(4, "big")


def check_files(path: Path) -> None:
    """Raise unless a folder holds a ledger whose files are plain files in it: a link could lead anywhere."""
    if not path.is_dir():
        raise CorrigendaError(f"There is no folder {path} with saved edits.")
    for name in (LEDGER_NAME, f"{LEDGER_NAME}-wal", f"{LEDGER_NAME}-shm", HEAD_NAME):
        file = path / name
        try:
            mode = file.lstat().st_mode
        except FileNotFoundError:
            if name == LEDGER_NAME:
                raise CorrigendaError(f"{file} is missing: {path} holds no saved edits.") from None
            continue
        if not stat.S_ISREG(mode):
            raise CorrigendaError(f"{file} is not a plain file, and only such a one is opened.")
    if os.path.lexists(path / f"{LEDGER_NAME}-journal"):
        # SQLite would play it back, and may remove files that it names; this project's ledgers never have one.
        raise CorrigendaError(f"{path / LEDGER_NAME}-journal was not written by this project: remove it.")


def reason_of(error: BaseException) -> str:
    """An error's own words, fit for the end of a sentence."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if "disk is full" in text:
        text = "the disk is full, free some space and run the command again"
    if "readonly" in text or "read-only" in text.lower():
        text = "its folder or file is read-only"
    if "database is locked" in text:
        text = "another process is writing to it, try again when that has ended"
    return " ".join(text.split()).rstrip(".")


def _encoded(body: dict[str, Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, sort_keys=True).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise CorrigendaError(f"What JSON cannot hold cannot be recorded: {reason_of(error)}.") from None


def _next_chain(chain: bytes, seq: int, kind: str, body: bytes) -> bytes:
    named = kind.encode(errors="surrogatepass")
    head = seq.to_bytes(8, "little", signed=True) + len(named).to_bytes(8, "little")
    return hashlib.sha256(chain + head + named + body).digest()


def read_head(path: Path) -> tuple[int, bytes] | None:
    """The number and chain of the last entry that `head.json` knows of; None where there is no such file."""
    file = path / HEAD_NAME
    try:
        data = json.loads(file.read_bytes()[:4096])
        entries, chain = data["entries"], bytes.fromhex(data["chain"])
        if not isinstance(entries, int) or isinstance(entries, bool) or entries < 0 or len(chain) != 32:
            raise ValueError("it does not say where the ledger ends")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorrigendaError(
            f"{file} is damaged ({reason_of(error)}): run `corrigenda repair`, which writes it anew."
        ) from None
    return entries, chain


def _mode(path: Path, write: bool) -> str:
    """How to open it: a folder that cannot be written has no place for the files that SQLite's readers share."""
    if os.access(path, os.W_OK) and os.access(path / LEDGER_NAME, os.W_OK):
        return "mode=rw"
    if write:
        raise CorrigendaError(f"The folder {path} is read-only: edits in it cannot be changed; copy it elsewhere.")
    log = path / f"{LEDGER_NAME}-wal"
    if log.exists() and log.stat().st_size:
        raise CorrigendaError(
            f"The folder {path} is read-only, and its last edits are still in {log.name}: open it once where it can "
            "be written, or copy it."
        )
    return "mode=ro&immutable=1"


def _connect(file: Path, options: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(str(file.absolute()))}?{options}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=10,
    )
    _guard(connection)
    return connection


def _guard(connection: sqlite3.Connection) -> None:
    """A file from elsewhere may define nothing that runs, and claim no more memory than it may have."""
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_TENSORS + 4096)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA mmap_size = 0")


def _lay_out(connection: sqlite3.Connection) -> None:
    for statement in _SCHEMA.values():
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _check_layout(connection: sqlite3.Connection, file: Path) -> None:
    """Raise unless the database has this version's tables and nothing else: no view, no trigger, no index."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != _APPLICATION_ID:
        raise CorrigendaError(f"{file} is not a ledger of this project.")
    if version > SCHEMA_VERSION:
        raise CorrigendaError(
            f"{file} has schema {version}, which this version (schema {SCHEMA_VERSION}) does not read: update "
            "Corrigenda."
        )
    found = {name: sql for name, sql in connection.execute("SELECT name, sql FROM sqlite_master")}
    if version != SCHEMA_VERSION or found != _SCHEMA:
        raise CorrigendaError(f"{file} has other tables than a ledger of schema {SCHEMA_VERSION}: it is not used.")
