"""Checking a folder, everything against everything."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CorrigendaError
from .folder import Folder
from .history import History, StoredEdit
from .ledger import Ledger

if TYPE_CHECKING:
    from torch import Tensor


MOST_TOKENS = 1 << 24
"""No tokenizer has as many, where a ledger does not say how many its model's has."""


def problems(directory: str | Path | Folder) -> list[str]:
    """All that is wrong with a folder, one sentence each; it is only read."""
    found: list[str] = []
    try:
        ledger = Ledger.open(directory)
    except CorrigendaError as error:
        return [str(error)]
    try:
        with ledger.snapshot():
            structure = ledger.integrity()
            if structure is not None:
                # What such a file holds may have no end, and is not asked for.
                return [*found, f"{ledger.name} is damaged in its structure: {structure}."]
            ledger.check_structure()
            history = History.read(ledger)
            ledger.check_claim(history.claimed)
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
        if stored.time < last:
            yield f'{ledger.name} has edit "{stored.id}" at an earlier time than the one before.'
        last = stored.time
        first = history.edits.get(stored.batch)
        if first is None or first.batch != stored.batch:
            yield f'{ledger.name} has edit "{stored.id}" in a batch that does not begin with an edit.'
        try:
            stored.read_edit()
        except CorrigendaError as error:
            yield f'{ledger.name} has edit "{stored.id}" that is none: {error}'
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat(timespec="microseconds")
    if history.last_time > tomorrow:
        yield f"{ledger.name} has an entry of {history.last_time}, which is still to come: later ones bear that time."
    if history.edits and history.ground is None:
        yield f"{ledger.name} has edits but no ground tensors."


def _tensors(ledger: Ledger, history: History) -> Iterator[str]:
    """Tensors that are missing, damaged, left over, or not of the shape that the method writes; and fingerprints."""
    from .codec import unpacked

    begun = {entry.seq: entry.body.get("tensors", {}) for entry in (history.store, history.ground) if entry is not None}
    expected = {*begun, *(seq for seq, stored in history.edits.items() if not stored.dropped)}
    for seq in ledger.owners():
        if seq in expected:
            expected.remove(seq)
        else:
            yield f"{ledger.name} has tensors that belong to no edit, under entry {seq}."
    for seq in sorted(expected):
        yield f"{ledger.name} lacks the tensors of entry {seq}."
    for seq, of_entry in begun.items():
        try:
            unpacked(ledger, seq, of_entry)
        except CorrigendaError as error:
            yield str(error)
    for stored in history.edits.values():
        try:
            check_record(ledger, history, stored)
        except CorrigendaError as error:
            yield str(error)


def check_record(ledger: Ledger, history: History, stored: StoredEdit) -> None:
    """Raise unless an edit's record is whole and of the shape that its method writes for this model."""
    from ..methods.config import CONFIGS
    from ..methods.record import sizes_of
    from ..methods.registry import method_class
    from .codec import fingerprint_of, record_of

    config, base = history.store.body["config"], history.store.body["base"]
    if config["method"] not in CONFIGS:
        raise CorrigendaError(f"{ledger.name} is of an unknown method, {config.get('method')!r}.")
    sizes = sizes_of(config, base["widths"])
    try:
        _check_fingerprint(fingerprint_of(stored), config, base)
        if not stored.dropped:  # an undone one is still known by its fingerprint
            method_class(config["method"]).check_shapes(record_of(ledger, stored).tensors, sizes)
    except CorrigendaError as error:
        problem = str(error).rstrip(".")
        raise CorrigendaError(f'Edit "{stored.id}" of {ledger.name} cannot be used: {problem}.') from None


def _check_fingerprint(fingerprint: Tensor, config: dict[str, Any], base: dict[str, Any]) -> None:
    """Raise unless int32 `[n]` could be what a router of this configuration knows an edit by."""
    import torch

    from ..methods.config import CONFIGS

    by = config.get("router")
    kind = by if by in ("mask", "meaning") else CONFIGS[config["method"]].fingerprint
    if kind == "meaning":
        from ..routers.meaning.known import unpacked

        width = int(fingerprint[4]) if len(fingerprint) > 4 else 0  # the encoder's, which is not loaded here
        unpacked(fingerprint, base.get("vocabulary", MOST_TOKENS), width)
        return
    if kind == "mask":
        fits = len(fingerprint) == -(-base["widths"][0] // 32)
    elif kind == "key":
        fits = len(fingerprint) == base["widths"][0] + 1 and bool(fingerprint.view(torch.float32).isfinite().all())
    elif kind == "none":
        fits = len(fingerprint) == 0
    else:
        ids = fingerprint.tolist()
        fits = all(0 <= token < base.get("vocabulary", MOST_TOKENS) for token in ids)
        if kind == "tokens":
            fits = fits and ids == sorted(set(ids))
    if not fits:
        raise CorrigendaError("its fingerprint is not one of its router's")
