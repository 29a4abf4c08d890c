"""Between records of edits and the ledger's entries: safetensors bytes and JSON."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..errors import CorrigendaError
from ..methods.record import Record
from .history import History, StoredEdit
from .ledger import Ledger

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.int64, torch.int8)


def packed(tensors: dict[str, Tensor]) -> bytes:
    """Tensors as the bytes of a safetensors file."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def unpacked(ledger: Ledger, entry: int, expected: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of an entry, checked against what its body says of them, and finite."""
    tensors = _read(ledger, entry, expected)
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise CorrigendaError(f"{ledger.name} has tensors in entry {entry} with values that are not finite.")
    return tensors


def _read(ledger: Ledger, entry: int, expected: dict[str, Any]) -> dict[str, Tensor]:
    data = ledger.tensors(entry, expected)
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CorrigendaError(f"{ledger.name} has tensors in entry {entry} that cannot be read: {error}.") from None
    if any(tensor.dtype not in _DTYPES for tensor in tensors.values()):
        raise CorrigendaError(f"{ledger.name} has tensors in entry {entry} of a type that no method writes.")
    return tensors


def fingerprint_text(fingerprint: Tensor) -> str:
    """int32 `[n]` as text."""
    return base64.b64encode(fingerprint.cpu().contiguous().numpy().astype("<i4").tobytes()).decode()


def fingerprint_of(stored: StoredEdit) -> Tensor:
    """int32 `[n]`: what the router knows a stored edit by."""
    if not stored.fingerprint:
        return torch.zeros(0, dtype=torch.int32, device="cpu")
    return torch.frombuffer(bytearray(stored.fingerprint), dtype=torch.int32)


def withdrawn_of(history: History, applied: Sequence[int]) -> tuple[list[str], list[Tensor], list[int]]:
    """Ids, fingerprints and undos' entries of the withdrawn edits: what a router is told (`EditRouter.withdraw`)."""
    found = history.withdrawn(applied)
    edits = [history.edits[seq] for seq in found]
    return [stored.id for stored in edits], [fingerprint_of(stored) for stored in edits], list(found.values())


def record_of(ledger: Ledger, stored: StoredEdit) -> Record:
    """The record of a stored edit; whether its values are ones that an edit may have is for `check_tensors` to say."""
    if stored.dropped:
        raise CorrigendaError(f'The tensors of edit "{stored.id}" are no longer kept: write it anew.')
    body = stored.body
    return Record(_read(ledger, stored.seq, body["tensors"]), body.get("numbers", {}), fingerprint_of(stored))
