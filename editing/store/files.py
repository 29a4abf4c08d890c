"""The files of a store's folder: what they are called, and what is checked before one is opened."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from pathlib import Path

from ..errors import CorrigendaError

LEDGER_NAME = "ledger.sqlite"
HEAD_NAME = "head.json"
APPLICATION_ID = 0x436F7272


def refuse_non_empty(directory: str | Path) -> None:
    """Raise unless `directory` is a new or empty folder: saved edits are never overwritten."""
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise CorrigendaError(f"{path} is a file, not a folder to save edits in.")
    if path.is_dir() and any(path.iterdir()):
        raise CorrigendaError(f"The folder {path} is not empty: name a new one, or remove it first.")


def check_files(path: Path) -> None:
    """Raise unless a folder holds a ledger whose files are plain files in it: a link could lead anywhere."""
    if not path.is_dir():
        there = f"{path} is a file, not a folder" if path.exists() else f"There is no folder {path}"
        raise CorrigendaError(f"{there} with saved edits.")
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


def is_ledger(file: Path) -> bool:
    """Whether a file says of itself that it is a ledger of this project."""
    try:
        with file.open("rb") as opened:
            start = opened.read(100)
    except OSError:
        return False
    return start[:16] == b"SQLite format 3\0" and start[68:72] == APPLICATION_ID.to_bytes(4, "big")


def read_head(path: Path) -> tuple[int, bytes] | None:
    """The number and chain of the last entry that `head.json` knows of; None where there is no such file."""
    file = path / HEAD_NAME
    try:
        with file.open("rb") as opened:
            data = json.loads(opened.read(4096))  # whatever its size: one that was written has a hundred
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


def access_mode(path: Path, write: bool) -> str:
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


def flush_folder(path: Path) -> None:
    """Force a folder's list of names to the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
