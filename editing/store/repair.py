"""Making what is left of a damaged folder whole.

What is missing is written down before anything is put in order: a kill on the way leaves a folder that is refused as
before, or one whose ledger says what it has lost.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import CorrigendaError
from .check import check_record, problems
from .files import BESIDE, HEAD_NAME, LEDGER_NAME, STAGING, check_files, has_log, read_head, reason_of
from .folder import Folder
from .history import History, StoredEdit
from .ledger import Ledger, New
from .reading import Entry
from .store import EditStore


def repair(directory: str | Path) -> list[str]:
    """Make a damaged folder whole again by leaving out what is damaged; says what was done, nothing if nothing was.

    The first damaged entry and all after it are lost, and edits whose own tensors are; the damaged ledger is kept
    beside the new one. A note in the ledger says what is missing.
    """
    with Folder(directory) as folder:
        try:
            check_files(folder)
            folder.lock()
            if not problems(folder):
                return []
            done = _ended_anew(folder) or _salvaged(folder)
            left = problems(folder)
        except OSError as error:
            raise CorrigendaError(
                f"{folder.path} could not be repaired: {reason_of(error)}; what it held is as it was."
            ) from error
        if left:
            raise CorrigendaError(f"{folder.path} could not be repaired: {left[0]}")
        return done


def _ended_anew(folder: Folder) -> list[str]:
    """Write `head.json` anew where it alone is damaged, or names more than there is; nothing is done where more is."""
    try:
        store = EditStore.open(folder, write=True, head=False)
    except CorrigendaError:
        return []
    with contextlib.closing(store):
        _note(store, _missing(folder, store.ledger))
        folder.write(HEAD_NAME, store.ledger.head())
        done = [f"Wrote {folder.path / HEAD_NAME} anew: the ledger has {store.ledger.count} entries."]
    return [] if problems(folder) else done


def _missing(folder: Folder, ledger: Ledger) -> dict[str, Any] | None:
    """What `head.json` names that a ledger lacks; None where it names nothing, or the ledger has it."""
    try:
        entries, chain = read_head(folder)
    except CorrigendaError:
        return None
    return None if ledger.holds(entries, chain) else {"found": ledger.count, "entries": entries, "chain": chain.hex()}


def _note(store: EditStore, missing: dict[str, Any] | None) -> None:
    """Write down what is missing, unless a repair that was broken off has."""
    last = store.history.missing[-1] if store.history.missing else {}
    if missing is not None and {**missing, "found": None} != {**last, "found": None}:
        store.append([New("note", {"missing": missing, **store.stamp()})])


def _salvaged(folder: Folder) -> list[str]:
    """A new ledger of the entries before the first damaged one."""
    try:
        old = Ledger.open(folder, head=False)
    except CorrigendaError as error:
        raise CorrigendaError(
            f"{folder.path} is beyond repair, nothing was changed: restore it from a copy. {error}"
        ) from None
    for left in folder.path.glob(f"{STAGING}*"):
        shutil.rmtree(left, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=folder.path))
    try:
        new, kept, lost = _copied(folder, old, staging / "whole")
        new.close()
        old.close()
        aside = folder.free_name(f"{LEDGER_NAME}.damaged")
        folder.copy(LEDGER_NAME, aside)  # not moved: at no moment is there no ledger
        if has_log(folder):
            folder.copy(BESIDE[0], f"{aside}-wal")
            with contextlib.suppress(CorrigendaError):  # what is in the log alone, a kill would leave nowhere else
                Ledger.open(folder, write=True, head=False).close()
        for name in BESIDE:  # else SQLite would play the old log into the new ledger
            folder.remove(name)
        for name in (LEDGER_NAME, HEAD_NAME):
            folder.take(staging / "whole" / name, name)
        folder.flush()
    finally:
        old.close()
        shutil.rmtree(staging, ignore_errors=True)
    done = [f"Kept {kept} entries in a new ledger; the damaged one is {folder.path / aside}."]
    return done + [f'Edit "{name}" is lost: its tensors are damaged.' for name in lost]


def _copied(folder: Folder, old: Ledger, directory: Path) -> tuple[EditStore, int, list[str]]:
    """The whole entries of a ledger in a new one; how many there are; ids of edits whose tensors are damaged."""
    history, whole = History(old), 0
    damaged: list[StoredEdit] = []
    with old.snapshot():
        try:
            old.check_structure()
            for entry in old.entries():
                history.take([entry])
                whole = entry.seq
        except CorrigendaError:
            pass  # what was folded in before is whole
        if history.store is None or (history.edits and history.ground is None):
            raise CorrigendaError(f"{old.name} cannot be repaired: its first entries are damaged.")

        def entries() -> Iterator[New]:
            for seq in range(1, whole + 1):
                entry = old.entry(seq)
                yield New(entry.kind, entry.body, _tensors_of(old, history, entry, damaged))

        store = EditStore.filled(directory, lambda ledger: ledger.append(entries()))
    if damaged:
        store.append([New("lost", {"edits": [stored.seq for stored in damaged], **store.stamp()})])
    _note(store, _missing(folder, store.ledger))
    return store, whole, [stored.id for stored in damaged]


def _tensors_of(old: Ledger, history: History, entry: Entry, damaged: list[StoredEdit]) -> bytes | None:
    expected = entry.body.get("tensors")
    stored = history.edits.get(entry.seq)
    if expected is None or (stored is not None and stored.dropped):
        return None
    try:
        if stored is not None:
            check_record(old, history, stored)
        return old.tensors(entry.seq, expected)
    except CorrigendaError:
        if stored is None:
            raise
        damaged.append(stored)
        return None
