"""The database behind a ledger: its two tables, and how one from elsewhere is opened."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from urllib.parse import quote

from ..errors import CorrigendaError
from .files import APPLICATION_ID

SCHEMA_VERSION = 2
"""1 was a folder of JSON, JSON Lines and one safetensors file (`migrate.py`)."""

LARGEST_TENSORS = 1 << 30
"""What one entry may hold, in bytes; a file that claims more is refused before anything is allocated."""

_TABLES = {
    "entries": "CREATE TABLE entries (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, body BLOB NOT NULL, "
    "chain BLOB NOT NULL)",
    "tensors": "CREATE TABLE tensors (seq INTEGER PRIMARY KEY, data BLOB NOT NULL)",
}


def connect(file: Path, options: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(str(file.absolute()))}?{options}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=10,
    )
    guard(connection)
    return connection


def guard(connection: sqlite3.Connection) -> None:
    """A file from elsewhere may define nothing that runs, and claim no more memory than it may have."""
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_TENSORS + 4096)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA mmap_size = 0")


def lay_out(connection: sqlite3.Connection) -> None:
    for statement in _TABLES.values():
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def check_layout(connection: sqlite3.Connection, file: Path) -> None:
    """Raise unless the database has this version's tables and nothing else: no view, no trigger, no index."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION_ID:
        raise CorrigendaError(f"{file} is not a ledger of this project.")
    if version > SCHEMA_VERSION:
        raise CorrigendaError(
            f"{file} has schema {version}, which this version (schema {SCHEMA_VERSION}) does not read: update "
            "Corrigenda."
        )
    found = {name: sql for name, sql in connection.execute("SELECT name, sql FROM sqlite_master")}
    if version != SCHEMA_VERSION or found != _TABLES:
        raise CorrigendaError(f"{file} has other tables than a ledger of schema {SCHEMA_VERSION}: it is not used.")
