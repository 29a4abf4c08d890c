"""The database behind a ledger: its two tables, and how one from elsewhere is opened.

A file from elsewhere may define nothing that runs, lead nowhere, take no more memory than it has bytes, and no longer
than its size explains.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from urllib.parse import quote

from ..errors import CorrigendaError
from .files import APPLICATION_ID, LEDGER_NAME
from .folder import Folder

SCHEMA_VERSION = 2
"""1 was a folder of JSON, JSON Lines and one safetensors file (`migrate.py`)."""

LARGEST_TENSORS = 1 << 30
"""What one entry may hold, in bytes; a file that claims more is refused before anything is allocated."""

_TABLES = {
    "entries": "CREATE TABLE entries (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, body BLOB NOT NULL, "
    "chain BLOB NOT NULL)",
    "tensors": "CREATE TABLE tensors (seq INTEGER PRIMARY KEY, data BLOB NOT NULL)",
}
_LAYOUT = sorted(("table", name, name, statement) for name, statement in _TABLES.items())

_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: LARGEST_TENSORS + 4096,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 4096,
    sqlite3.SQLITE_LIMIT_COLUMN: 16,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 16,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 4,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 4,
    sqlite3.SQLITE_LIMIT_ATTACHED: 1,  # VACUUM attaches what it makes
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 16,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
_SETTINGS = {
    "DEFENSIVE": True,
    "TRUSTED_SCHEMA": False,
    "ENABLE_TRIGGER": False,
    "ENABLE_VIEW": False,
    "WRITABLE_SCHEMA": False,
    "DQS_DDL": False,
    "DQS_DML": False,
}
"""What Python 3.12 and later lets one set; `_permitted` keeps triggers and views from running with every Python."""

_FUNCTIONS = {"length", "min", "count"}
_PRAGMAS = {
    *("application_id", "user_version", "journal_mode", "synchronous", "integrity_check", "wal_checkpoint"),
    *("page_count", "page_size", "max_page_count", "locking_mode"),
}
_ACTIONS = {
    *(sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_INSERT, sqlite3.SQLITE_DELETE),
    *(sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_SAVEPOINT),
}

STEP = 100_000
_STEPS_OF_ANY_FILE = 20_000_000
"""About a second of work. Reading a row takes some ten steps, and no row takes less than 40 bytes."""


class Steps:
    """A progress handler that ends a statement which takes more steps than the size of its file explains.

    The pages of a damaged or hostile file can lead in circles.
    """

    def __init__(self) -> None:
        self._left = 0
        self.begin(0)

    def begin(self, size: int) -> None:
        """What comes next is on a file of this many bytes."""
        self._left = (_STEPS_OF_ANY_FILE + size) // STEP

    def __call__(self) -> int:
        self._left -= 1
        return self._left < 0


_OPENING = threading.Lock()


def connect(folder: Folder, options: str) -> sqlite3.Connection:
    """The database of a folder's ledger. Raises where SQLite, which opens by path, came to another file than `folder`.

    The folder's name, or that of the ledger, may be exchanged for a link meanwhile.
    """
    file = folder.path.absolute() / LEDGER_NAME
    with _OPENING:  # a descriptor of such a file that is new afterwards is then this one's
        before, known = folder.status(LEDGER_NAME), _descriptors()
        connection = sqlite3.connect(
            f"file:{quote(str(file))}?{options}", uri=True, isolation_level=None, check_same_thread=False, timeout=10
        )
        try:
            after = folder.status(LEDGER_NAME)
            opened = [os.fstat(number) for number in _descriptors() - known]
            if before is None or after is None or any(not os.path.samestat(before, one) for one in (after, *opened)):
                raise CorrigendaError(f"{file} was exchanged for another file while it was opened: try again.")
            guard(connection)
        except BaseException:
            connection.close()
            raise
    return connection


def _descriptors() -> set[int]:
    """This process's descriptors of ledgers; none where the system does not list them."""
    found = set()
    with contextlib.suppress(OSError):
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if os.path.basename(os.readlink(f"/proc/self/fd/{number}")) == LEDGER_NAME:
                    found.add(int(number))
    return found


def guard(connection: sqlite3.Connection) -> None:
    """Let nothing run that a file defines, before anything of it is read."""
    for category, limit in _LIMITS.items():
        connection.setlimit(category, limit)
    if hasattr(connection, "setconfig"):
        for name, value in _SETTINGS.items():
            connection.setconfig(getattr(sqlite3, f"SQLITE_DBCONFIG_{name}"), value)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA mmap_size = 0")
    connection.execute("PRAGMA temp_store = MEMORY")


def restrict(connection: sqlite3.Connection) -> None:
    """From now on, let this project's own statements run, and nothing else."""
    connection.set_authorizer(_permitted)


def _permitted(action: int, one: str | None, two: str | None, _database: str | None, within: str | None) -> int:
    """Whether SQLite may compile a step of a statement; `within`: the trigger or view that it comes from."""
    own = within is None and (
        action in _ACTIONS
        or (action == sqlite3.SQLITE_PRAGMA and one in _PRAGMAS)
        or (action == sqlite3.SQLITE_FUNCTION and two in _FUNCTIONS)
    )
    return sqlite3.SQLITE_OK if own else sqlite3.SQLITE_DENY


def lay_out(connection: sqlite3.Connection) -> None:
    for statement in _TABLES.values():
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def check_layout(connection: sqlite3.Connection, name: str) -> None:
    """Raise unless the database has this version's tables and nothing else: no view, no trigger, no index."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION_ID:
        raise CorrigendaError(f"{name} is not a ledger of this project.")
    if version > SCHEMA_VERSION:
        raise CorrigendaError(
            f"{name} has schema {version}, which this version (schema {SCHEMA_VERSION}) does not read: update "
            "Corrigenda."
        )
    # All of it, row by row: of two things with one name, a trigger could have a table's.
    found = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master LIMIT 3").fetchall()
    if version != SCHEMA_VERSION or sorted(found, key=repr) != _LAYOUT:
        raise CorrigendaError(f"{name} has other tables than a ledger of schema {SCHEMA_VERSION}: it is not used.")
