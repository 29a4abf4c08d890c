"""Checking a folder, everything against everything; and making what is left of a damaged one whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import CorrigendaError
from .files import HEAD_NAME, LEDGER_NAME, check_files, read_head
from .history import History, StoredEdit
from .ledger import Entry, Ledger, New
from .lock import WriterLock
from .store import EditStore


def problems(directory: str | Path) -> list[str]:
    """All that is wrong with a folder, one sentence each; it is only read."""
    found: list[str] = []
    path = Path(directory)
    try:
        check_files(path)
        if read_head(path) is None:
            found.append(f"{path / HEAD_NAME} is missing: run `corrigenda repair`, which writes it anew.")
        ledger = Ledger.open(path)
    except CorrigendaError as error:
        return [*found, str(error)]
    try:
        with ledger.snapshot():
            structure = ledger.integrity()
            if structure is not None:
                # What such a file holds may have no end, and is not asked for.
                return [*found, f"{ledger.name} is damaged in its structure: {structure}."]
            history = History.read(ledger)
            found += _sense(ledger, history)
            found += _tensors(ledger, history)
    except CorrigendaError as error:
        found.append(str(error))
    finally:
        ledger.close()
    return list(dict.fromkeys(found))


def _sense(ledger: Ledger, history: History) -> Iterator[str]:
    """What the entries say of each other."""
    from ..methods.config import EditingConfig

    try:
        EditingConfig.from_dict(history.store.body["config"])
    except (CorrigendaError, TypeError) as error:
        yield f"{ledger.name} has a configuration that cannot be used: {str(error).rstrip('.')}."
    last = ""
    for stored in history.edits.values():
        if stored.body["time"] < last:
            yield f'{ledger.name} has edit "{stored.id}" at an earlier time than the one before.'
        last = stored.body["time"]
        first = history.edits.get(stored.batch)
        if first is None or first.batch != stored.batch:
            yield f'{ledger.name} has edit "{stored.id}" in a batch that does not begin with an edit.'
        try:
            _ = stored.edit
        except CorrigendaError as error:
            yield f'{ledger.name} has edit "{stored.id}" that is none: {error}'
    if history.edits and history.ground is None:
        yield f"{ledger.name} has edits but no ground tensors."


def _tensors(ledger: Ledger, history: History) -> Iterator[str]:
    """Tensors that are missing, damaged, left over, or not of the shape that the method writes; and fingerprints."""
    from .codec import fingerprint_of, unpacked

    expected = {entry.seq: entry.body.get("tensors") for entry in (history.store, history.ground) if entry is not None}
    expected |= {seq: stored.body["tensors"] for seq, stored in history.edits.items() if not stored.dropped}
    for seq in set(ledger.owners()) ^ set(expected):
        what = "lacks the tensors of" if seq in expected else "has tensors that belong to no edit, under"
        yield f"{ledger.name} {what} entry {seq}."
    for seq, of_entry in expected.items():
        try:
            if seq in history.edits:
                check_record(ledger, history, history.edits[seq])
            else:
                unpacked(ledger, seq, of_entry or {})
        except CorrigendaError as error:
            yield str(error)
    for stored in history.edits.values():
        if stored.dropped and not stored.lost:  # what the router knows a withdrawn edit by
            try:
                fingerprint_of(stored)
            except CorrigendaError as error:
                yield str(error)


def check_record(ledger: Ledger, history: History, stored: StoredEdit) -> None:
    """Raise unless an edit's record is whole and of the shape that its method writes for this model."""
    from ..methods.config import CONFIGS
    from ..methods.record import check_tensors
    from ..methods.registry import method_class
    from .codec import record_of

    record = record_of(ledger, stored)
    config, widths = history.store.body["config"], history.store.body["base"]["widths"]
    if config.get("method") not in CONFIGS:
        raise CorrigendaError(f"{ledger.name} is of an unknown method, {config.get('method')!r}.")
    sizes = {"D": widths[0], "d": widths[1]}
    if config.get("top_k") is not None:
        sizes["k"] = config["top_k"]
    try:
        check_tensors(record.tensors, method_class(config["method"]).record_shapes, sizes)
    except CorrigendaError as error:
        raise CorrigendaError(f'Edit "{stored.id}" of {ledger.name} cannot be used: {error}.') from None


def repair(directory: str | Path) -> list[str]:
    """Make a damaged folder whole again by leaving out what is damaged; says what was done, nothing if nothing was.

    The first damaged entry and all after it are lost, and edits whose own tensors are; the damaged ledger is kept
    beside the new one.
    """
    path = Path(directory)
    check_files(path)
    lock = WriterLock(path)
    try:
        if not problems(path):
            return []
        done = _repaired_head(path)
        if problems(path):
            done += _salvaged(path)
    finally:
        lock.release()
    left = problems(path)
    if left:
        raise CorrigendaError(f"{path} could not be repaired: {left[0]}")
    return done


@contextlib.contextmanager
def _without_head(path: Path) -> Iterator[None]:
    """Within: the ledger opens whatever `head.json` says of it. After: the new one, or the old where none was written.

    It alone tells how far the ledger went.
    """
    head, aside = path / HEAD_NAME, path / f".{HEAD_NAME}.damaged"
    if head.exists():
        os.replace(head, aside)
    try:
        yield
    finally:
        if aside.exists():
            if head.exists():
                aside.unlink()
            else:
                os.replace(aside, head)


def _repaired_head(path: Path) -> list[str]:
    """Write `head.json` anew where the ledger itself can be read."""
    with _without_head(path):
        try:
            ledger = Ledger.open(path)
        except CorrigendaError:
            return []
        try:
            History.read(ledger)
            ledger.write_head()
        except CorrigendaError:
            return []
        finally:
            ledger.close()
    return [f"Wrote {path / HEAD_NAME} anew: the ledger has {ledger.count} entries."]


def _salvaged(path: Path) -> list[str]:
    """A new ledger of the entries before the first damaged one."""
    with _without_head(path):
        return _copied_whole(path)


def _copied_whole(path: Path) -> list[str]:
    try:
        old = Ledger.open(path)
    except CorrigendaError as error:
        raise CorrigendaError(
            f"{path} is beyond repair, nothing was changed: restore it from a copy. {error}"
        ) from None
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        new, lost = _copied(old, staging / "whole")
        entries = new.ledger.count
        new.close()
        aside = _free_name(path / f"{LEDGER_NAME}.damaged")
        old.close()
        for suffix in ("-wal", "-shm"):
            (path / f"{LEDGER_NAME}{suffix}").unlink(missing_ok=True)
        shutil.copyfile(path / LEDGER_NAME, aside)  # not moved: at no moment is there no ledger
        os.replace(staging / "whole" / LEDGER_NAME, path / LEDGER_NAME)
        os.replace(staging / "whole" / HEAD_NAME, path / HEAD_NAME)
    finally:
        old.close()
        shutil.rmtree(staging, ignore_errors=True)
    done = [f"Kept {entries} entries in a new ledger; the damaged one is {aside}."]
    return done + [f'Edit "{name}" is lost: its tensors are damaged.' for name in lost]


def _copied(old: Ledger, directory: Path) -> tuple[EditStore, list[str]]:
    """The whole entries of a ledger in a new one; and the ids of edits whose tensors are damaged."""
    history, whole = History(), []
    damaged: list[StoredEdit] = []
    with old.snapshot():
        try:
            for entry in old.entries():
                history.take(old, [entry])
                whole.append(entry)
        except CorrigendaError:
            pass  # what was folded in before is whole
        if history.store is None or (history.edits and history.ground is None):
            raise CorrigendaError(f"{old.name} cannot be repaired: its first entries are damaged.")

        entries = (New(entry.kind, entry.body, _tensors_of(old, history, entry, damaged)) for entry in whole)
        ledger = Ledger.create(directory, lambda ledger: ledger.append(entries))
    store = EditStore(ledger, History.read(ledger))
    if damaged:
        store.append([New("lost", {"edits": [stored.seq for stored in damaged], **store.stamp()})])
    return store, [stored.id for stored in damaged]


def _free_name(path: Path) -> Path:
    number = 0
    while (found := path.with_name(f"{path.name}-{number}" if number else path.name)).exists():
        number += 1
    return found


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
