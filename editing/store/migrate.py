"""Folders of the first format (JSON, JSON Lines and one safetensors file), read into a ledger."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ..edits.edit import Edit
from ..errors import CorrigendaError
from ..methods.config import CONFIG_NAME, EditingConfig
from .codec import fingerprint_text, packed
from .files import HEAD_NAME, LEDGER_NAME
from .ledger import New
from .schema import LARGEST_TENSORS
from .store import EditStore

EDITS_NAME = "edits.jsonl"
TENSORS_NAME = "memory.safetensors"
MANIFEST_NAME = "manifest.json"
FIRST_FORMAT = 1
_FILES = (CONFIG_NAME, EDITS_NAME, TENSORS_NAME)
_SAMPLE = "base.weight_sample"


def is_first_format(directory: Path) -> bool:
    """Whether a folder was saved in the first format."""
    return (directory / MANIFEST_NAME).is_file()


def converted(directory: Path, into: Path | None = None) -> EditStore:
    """The store that a folder of the first format amounts to: a temporary one, or one in the new folder `into`.

    Rows of the associative method become each edit's own. A MEMOIR matrix holds all its edits in one: it becomes the
    ground under those that are written later, and its edits cannot be taken out one by one.
    """
    manifest, files = _checked(directory)
    reading = CONFIG_NAME
    try:
        config = EditingConfig.from_dict(json.loads(files[CONFIG_NAME]))
        reading = EDITS_NAME
        # By line feeds alone: a prompt may hold other characters that Python takes for the end of a line.
        edits = [Edit.from_dict(json.loads(line)) for line in files[EDITS_NAME].decode().split("\n")[:-1]]
        reading = TENSORS_NAME
        tensors = load(files[TENSORS_NAME])
        sample = packed({_SAMPLE: tensors.pop(_SAMPLE)})
        header = {
            "config": config.to_dict(),
            "prompts": dict(manifest["prompts"]),
            "base": dict(manifest["base"]),
            "versions": manifest.get("versions", {}),
        }
        ground, records = _split(tensors, len(edits))
    except (CorrigendaError, KeyError, TypeError, AttributeError, ValueError, RuntimeError, SafetensorError) as error:
        raise CorrigendaError(f"{directory / reading} cannot be read: {str(error).rstrip('.')}.") from error
    store = EditStore.temporary(header, sample) if into is None else EditStore.create(into, header, sample)
    if edits or any(bool(tensor.any()) for name, tensor in ground.items() if name.endswith(".background")):
        store.append(_entries(store, ground, edits, records))
    return store


def migrate(directory: Path) -> EditStore:
    """Turn a folder of the first format into one with a ledger, in place, and remove what it replaces."""
    directory = directory.resolve()  # `.` has no name
    made = directory.with_name(f".{directory.name}.migrated-{os.getpid()}")
    store = converted(directory, into=made)
    store.close()
    for name in (HEAD_NAME, LEDGER_NAME):  # the ledger last: with it the folder is one of the new format
        os.replace(made / name, directory / name)
    made.rmdir()
    for name in (MANIFEST_NAME, *_FILES):
        (directory / name).unlink(missing_ok=True)
    return EditStore.open(directory)


def _split(tensors: dict[str, Tensor], edits: int) -> tuple[dict[str, Tensor], list[tuple[dict[str, Tensor], Tensor]]]:
    """The ground, and each edit's own tensors with its fingerprint."""
    known = tensors.pop("router.masks", None)
    if known is None:
        known = [row[row >= 0] for row in tensors.pop("router.tokens")]
    if "memory.keys" in tensors:
        counts = tensors.pop("memory.rows").tolist()
        pairs = zip(tensors.pop("memory.keys").split(counts), tensors.pop("memory.values").split(counts))
        own = [{"keys": keys, "values": values} for keys, values in pairs]
    else:
        features = sum((word & 0xFFFFFFFF).bit_count() for word in known[0].tolist()) if len(known) else 0
        width = tensors["memory.weight"].shape[1]
        own = [
            {
                "x": torch.zeros(0, features, dtype=torch.float32, device="cpu"),
                "h": torch.zeros(0, width, dtype=torch.float32, device="cpu"),
            }
            for _ in known
        ]
    if not len(known) == len(own) == edits:
        raise ValueError(f"{edits} edits, but tensors of {len(own)}")
    return tensors, [(tensors_of, fingerprint.int()) for tensors_of, fingerprint in zip(own, known)]


def _entries(
    store: EditStore, ground: dict[str, Tensor], edits: list[Edit], records: list[tuple[dict[str, Tensor], Tensor]]
) -> list[New]:
    stamp = store.stamp()
    first = store.ledger.count + 2
    entries = [New("ground", stamp, packed(ground))]
    for number, (edit, (tensors, fingerprint)) in enumerate(zip(edits, records)):
        shared = "x" in tensors
        body: dict[str, Any] = {
            "id": edit.id,
            "edit": edit.to_dict(),
            "batch": first + number,
            "fingerprint": fingerprint_text(fingerprint),
            "numbers": {"alpha": 1.0} if shared else {},
            "supersedes": [],
            **stamp,
        }
        entries.append(New("edit", {**body, "inherited": True} if shared else body, packed(tensors)))
    return entries


def _checked(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest and the files that it names, as they were saved."""
    manifest_file = path / MANIFEST_NAME
    try:
        manifest = json.loads(_bytes(manifest_file))
    except (ValueError, RecursionError) as error:
        raise CorrigendaError(f"{manifest_file} cannot be read: {error}.") from None
    if not isinstance(manifest, dict):
        raise CorrigendaError(f"{manifest_file} must hold a JSON object.")
    if manifest.get("format") != FIRST_FORMAT:
        raise CorrigendaError(
            f"{manifest_file} has format {manifest.get('format')!r}, which this version (format {FIRST_FORMAT} and "
            "ledgers) does not read."
        )
    rest = {name: value for name, value in manifest.items() if name != "check"}
    if manifest.get("check") != hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest():
        raise CorrigendaError(f"{manifest_file} is damaged: its contents do not match its own checksum.")
    if not isinstance(manifest.get("sha256"), dict):
        raise CorrigendaError(f"{manifest_file} is damaged: it does not hold the checksums of the other files.")
    files = {name: _bytes(path / name) for name in _FILES}
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != manifest["sha256"].get(name):
            raise CorrigendaError(f"{path / name} is damaged: its contents do not match the recorded checksum.")
    return manifest, files


def _bytes(file: Path) -> bytes:
    if file.is_symlink() or not file.is_file():
        raise CorrigendaError(f"{file} is missing or not a plain file: the saved edits are incomplete.")
    if file.stat().st_size > LARGEST_TENSORS:
        raise CorrigendaError(f"{file} is larger than any that is read.")
    try:
        return file.read_bytes()
    except OSError as error:
        raise CorrigendaError(f"{file} cannot be read: {error.strerror}.") from None
