"""Ledgers that somebody made: any entry, under a chain of checksums that fits."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from corrigenda.editing.store.entries import next_chain


def entries_of(folder: Path) -> list[tuple[str, Any]]:
    """Kind and body of each entry."""
    with contextlib.closing(sqlite3.connect(folder / "ledger.sqlite")) as connection:
        rows = connection.execute("SELECT kind, body FROM entries ORDER BY seq").fetchall()
    return [(kind, json.loads(body)) for kind, body in rows]


def forge(folder: Path, change: Callable[[list[tuple[str, Any]]], list[tuple[str, Any]]]) -> None:
    """Rewrite a folder's entries; a body may be bytes."""
    entries = change(entries_of(folder))
    with contextlib.closing(sqlite3.connect(folder / "ledger.sqlite")) as connection:
        connection.execute("DELETE FROM entries")
        chain = bytes(32)
        for seq, (kind, body) in enumerate(entries, 1):
            written = body if isinstance(body, bytes) else json.dumps(body).encode()
            chain = next_chain(chain, seq, kind, written)
            connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", (seq, kind, written, chain))
        connection.commit()
    (folder / "head.json").write_text(json.dumps({"entries": len(entries), "chain": chain.hex()}))


def forge_field(folder: Path, kind: str, path: str, value: Any) -> None:
    """Set a field, `edit.prompt` say, of the first entry of a kind."""

    def change(entries: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        body = next(body for found, body in entries if found == kind)
        *inside, last = path.split(".")
        for name in inside:
            body = body[name]
        body[last] = value
        return entries

    forge(folder, change)


def files_around(folder: Path) -> dict[str, tuple[int, int, int]]:
    """What stands around a folder, and which file, of which size and time, each is."""
    return {
        str(file): (found.st_ino, found.st_size, found.st_mtime_ns)
        for file in sorted(folder.parent.rglob("*"))
        if not file.is_relative_to(folder) and not (found := file.lstat()).st_mode & 0o040000
    }
