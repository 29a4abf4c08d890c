"""Ledgers that somebody made: any entry, under a chain of checksums that fits."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import struct
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


def circle(folder: Path, table: str) -> None:
    """Have the pages of a table lead to the same ones some hundred million times."""
    file = folder / "ledger.sqlite"
    with contextlib.closing(sqlite3.connect(file)) as connection:
        (size,), (pages,) = (connection.execute(f"PRAGMA page_{what}").fetchone() for what in ("size", "count"))
        ((root,),) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,))
    data = bytearray(file.read_bytes())

    def interior(child: int, cells: int = 400) -> bytes:
        starts = [size - 5 * (cell + 1) for cell in range(cells)]
        page = bytearray(size)
        page[:12] = struct.pack(">BHHHBI", 5, 0, cells, starts[-1], 0, child)
        page[12 : 12 + 2 * cells] = struct.pack(f">{cells}H", *starts)
        for cell, start in enumerate(starts):
            page[start : start + 5] = struct.pack(">IB", child, cell % 127 + 1)
        return bytes(page)

    start = (root - 1) * size
    data += data[start : start + size] + b"".join(interior(pages + 1 + level) for level in range(3))
    data[start : start + size] = interior(pages + 4)
    data[28:32] = struct.pack(">I", pages + 4)
    file.write_bytes(data)
