"""The files of a store's folder: what they are called, and what is checked before one is opened."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from ..errors import CorrigendaError
from .folder import Folder

LEDGER_NAME = "ledger.sqlite"
HEAD_NAME = "head.json"
BESIDE = tuple(f"{LEDGER_NAME}-{kind}" for kind in ("wal", "shm"))
"""What SQLite has beside a ledger that is open: its last transactions, and what its readers share."""
JOURNAL_NAME = f"{LEDGER_NAME}-journal"
LARGEST_JOURNAL = 1 << 26
APPLICATION_ID = 0x436F7272
ALONE = "mode=ro&immutable=1"
"""How SQLite opens a ledger that nobody else has open: it makes no file, and takes no lock."""

STAGING = ".corrigenda-"
"""What a new ledger is made in where its folder is there already; one that is left was not finished."""

_NO_ROOM = {"SQLITE_IOERR_SHMOPEN", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_TRUNCATE"}
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")


def refuse_non_empty(directory: str | Path) -> None:
    """Raise unless `directory` is a new or empty folder: saved edits are never overwritten.

    What a kill leaves of a ledger that was being made does not count: without the ledger, a head is nothing.
    """
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise CorrigendaError(f"{path} is a file, not a folder to save edits in.")
    if path.is_dir() and any(file.name != HEAD_NAME and not file.name.startswith(STAGING) for file in path.iterdir()):
        raise CorrigendaError(f"The folder {path} is not empty: name a new one, or remove it first.")


def check_files(folder: Folder) -> None:
    """Raise unless a folder holds a ledger whose files are plain files in it: a link could lead anywhere."""
    for name in (LEDGER_NAME, *BESIDE, HEAD_NAME):
        if folder.status(name) is None and name == LEDGER_NAME:
            raise CorrigendaError(f"{folder.path / name} is missing: {folder.path} holds no saved edits.")
    _check_journal(folder)


def _check_journal(folder: Folder) -> None:
    """Raise unless a rollback journal, which SQLite plays back, is of this very ledger and names no other file.

    It may name one that is then removed, and say that the ledger had any number of pages. Only a ledger whose mode
    another program has changed ever has a journal.
    """
    journal = folder.status(JOURNAL_NAME)
    if journal is None:
        return
    start, ledger = folder.read(JOURNAL_NAME, 28), folder.read(LEDGER_NAME, 100)
    if start[:1] in (b"", b"\0"):  # done with, or cut off before it held anything: SQLite plays back neither
        return
    pages, size = int.from_bytes(start[16:20], "big"), int.from_bytes(start[24:28], "big")
    own_size = {1: 65536}.get(found := int.from_bytes(ledger[16:18], "big"), found)
    names_another = journal.st_size < 28 or folder.read(JOURNAL_NAME, journal.st_size)[-8:] == _JOURNAL_MAGIC
    fits = start[:8] == _JOURNAL_MAGIC and size == own_size and pages * size <= folder.status(LEDGER_NAME).st_size
    if journal.st_size > LARGEST_JOURNAL or names_another or not fits:
        raise CorrigendaError(f"{folder.path / JOURNAL_NAME} was not written by this project: remove it.")


def is_ledger(file: Path) -> bool:
    """Whether a file says of itself that it is a ledger of this project."""
    try:
        with file.open("rb") as opened:
            start = opened.read(100)
    except OSError:
        return False
    return start[:16] == b"SQLite format 3\0" and start[68:72] == APPLICATION_ID.to_bytes(4, "big")


def read_head(folder: Folder) -> tuple[int, bytes]:
    """The number and chain of the last entry that `head.json` knows of.

    It alone tells how far the ledger went: one without it could have been cut back.
    """
    file = folder.path / HEAD_NAME
    try:
        data = json.loads(folder.read(HEAD_NAME, 4096))  # whatever its size: one that was written has a hundred
        entries, chain = data["entries"], bytes.fromhex(data["chain"])
        if not isinstance(entries, int) or isinstance(entries, bool) or not 0 <= entries < 1 << 63 or len(chain) != 32:
            raise ValueError("it does not say where the ledger ends")
    except FileNotFoundError:
        raise CorrigendaError(f"{file} is missing: run `corrigenda repair`, which writes it anew.") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorrigendaError(
            f"{file} is damaged ({reason_of(error)}): run `corrigenda repair`, which writes it anew."
        ) from None
    return entries, chain


def access_mode(folder: Folder, write: bool) -> str:
    """How to open it: a folder that cannot be written has no place for the files that SQLite's readers share."""
    path = folder.path
    if os.access(path, os.W_OK) and os.access(path / LEDGER_NAME, os.W_OK):
        return "mode=rw"
    if write:
        raise CorrigendaError(f"The folder {path} is read-only: edits in it cannot be changed; copy it elsewhere.")
    if has_log(folder):
        raise CorrigendaError(
            f"The folder {path} is read-only, and its last edits are still in {BESIDE[0]}: open it once where it can "
            "be written, or copy it."
        )
    return ALONE


def has_log(folder: Folder) -> bool:
    """Whether there are edits that are not in the ledger's own file yet."""
    log = folder.status(BESIDE[0])
    return log is not None and log.st_size > 0


def write_whole(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    staged = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=file.parent, prefix=f".{file.name}.", delete=False
        ) as opened:
            staged = Path(opened.name)
            opened.write(text)
        staged.chmod(0o644)
        os.replace(staged, file)
    except OSError as error:
        if staged is not None:
            staged.unlink(missing_ok=True)
        raise CorrigendaError(f"{file} cannot be written: {reason_of(error)}.") from error


def reason_of(error: BaseException) -> str:
    """An error's own words, fit for the end of a sentence."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if "disk is full" in text or getattr(error, "sqlite_errorname", "") in _NO_ROOM:
        text = "the disk is full, free some space and run the command again"
    if "readonly" in text or "read-only" in text.lower():
        text = "its folder or file is read-only"
    if "database is locked" in text:
        text = "another process is writing to it, try again when that has ended"
    return " ".join(text.split()).rstrip(".")
