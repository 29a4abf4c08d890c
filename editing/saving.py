"""Edits on disk: a folder of JSON, JSON Lines and safetensors, whole or not there, and checked before it is used."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .base import same_weights, tokenizer_digest, weight_sample
from .config import CONFIG_NAME, EditingConfig
from .edits import Edit
from .errors import CorrigendaError

if TYPE_CHECKING:
    from .decoder import Decoder
    from .model import EditedModel

EDITS_NAME = "edits.jsonl"
TENSORS_NAME = "memory.safetensors"
MANIFEST_NAME = "manifest.json"
FORMAT = 1


class Saved(NamedTuple):
    """What a folder holds, read but not yet compared with a model."""

    directory: Path
    config: EditingConfig
    prompts: dict[str, Any]
    base: dict[str, Any]
    edits: list[Edit]
    tensors: dict[str, Tensor]


def refuse_non_empty(directory: str | Path) -> None:
    """Raise unless `directory` is a new or empty folder: saved edits are never overwritten."""
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise CorrigendaError(f"{path} is a file, not a folder to save edits in.")
    if path.is_dir() and any(path.iterdir()):
        raise CorrigendaError(f"The folder {path} is not empty: name a new one, or remove it first.")


def write(edited: EditedModel, directory: str | Path) -> None:
    """Save into a folder beside the final one, and move that into place at the end."""
    target = Path(directory)
    refuse_non_empty(target)
    staging = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        edited.config.save_pretrained(staging)
        lines = [json.dumps(edit.to_dict(), ensure_ascii=False) for edit in edited.edits]
        (staging / EDITS_NAME).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in edited.method.state().items()}
        tensors["base.weight_sample"] = weight_sample(edited.decoder, edited.config.layer)
        save_file(tensors, staging / TENSORS_NAME)
        manifest = {
            "format": FORMAT,
            "prompts": edited.prompts.to_dict(),
            "base": {
                "class": type(edited.model).__name__,
                "layers": len(edited.decoder),
                "widths": list(edited.decoder.widths(edited.config.layer)),
                "tokenizer": tokenizer_digest(edited.tokenizer),
            },
            "versions": {name: version(name) for name in ("corrigenda", "torch", "transformers")},
            "sha256": {name: _digest(staging / name) for name in (CONFIG_NAME, EDITS_NAME, TENSORS_NAME)},
        }
        manifest["check"] = _manifest_digest(manifest)
        (staging / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        staging.chmod(0o755)  # mkdtemp and safetensors make what only its owner may read
        (staging / TENSORS_NAME).chmod(0o644)
        if target.is_dir():
            target.rmdir()
        os.replace(staging, target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CorrigendaError(f"The edits could not be saved in {target}: {reason}.") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def read(directory: str | Path) -> Saved:
    """Read a saved folder and check each file against its recorded SHA-256."""
    path = Path(directory)
    if not path.is_dir():
        raise CorrigendaError(f"There is no folder {path} with saved edits.")
    manifest = _json(path / MANIFEST_NAME)
    if manifest.get("format") != FORMAT:
        raise CorrigendaError(
            f"{path / MANIFEST_NAME} has format {manifest.get('format')!r}, which this version (format {FORMAT}) "
            "does not read."
        )
    if manifest.get("check") != _manifest_digest(manifest):
        raise CorrigendaError(f"{path / MANIFEST_NAME} is damaged: its contents do not match its own checksum.")
    for name in (CONFIG_NAME, EDITS_NAME, TENSORS_NAME):
        file = path / name
        if not file.is_file():
            raise CorrigendaError(f"{file} is missing: the saved edits are incomplete.")
        if _digest(file) != manifest["sha256"][name]:
            raise CorrigendaError(f"{file} is damaged: its contents do not match the recorded checksum.")
    reading = path / CONFIG_NAME
    try:
        config = EditingConfig.from_pretrained(path)
        reading = path / EDITS_NAME
        # By line feeds alone: a prompt may hold other characters that Python takes for the end of a line.
        lines = reading.read_bytes().decode().split("\n")[:-1]
        edits = [Edit.from_dict(json.loads(line)) for line in lines]
        reading = path / TENSORS_NAME
        tensors = load_file(reading)
    except (CorrigendaError, KeyError, TypeError, AttributeError, ValueError, SafetensorError) as error:
        raise CorrigendaError(f"{reading} cannot be read: {str(error).rstrip('.')}.") from error
    return Saved(path, config, manifest["prompts"], manifest["base"], edits, tensors)


def check_base(saved: Saved, decoder: Decoder, tokenizer: Any) -> None:
    """Raise where saved edits were written for a model of another shape or with another tokenizer."""
    wanted = "The edits in {} are for another model: {}."
    if saved.base["layers"] != len(decoder):
        difference = f"it has {saved.base['layers']} layers, this one {len(decoder)}"
        raise CorrigendaError(wanted.format(saved.directory, difference))
    if not 0 <= saved.config.layer < len(decoder):
        file = saved.directory / CONFIG_NAME
        raise CorrigendaError(f"{file} cannot be used: layer {saved.config.layer} is out of range.")
    widths = list(decoder.widths(saved.config.layer))
    if saved.base["widths"] != widths:
        difference = f"its FFN widths are {saved.base['widths']}, this one's {widths}"
        raise CorrigendaError(wanted.format(saved.directory, difference))
    if saved.base["tokenizer"] != tokenizer_digest(tokenizer):
        raise CorrigendaError(wanted.format(saved.directory, "its tokenizer differs"))


def restore(edited: EditedModel, saved: Saved) -> None:
    """Put saved edits into a freshly wrapped model; raise where they were written with other weights."""
    tensors = dict(saved.tensors)
    sample = tensors.pop("base.weight_sample", None)
    if sample is None or not same_weights(sample, weight_sample(edited.decoder, edited.config.layer)):
        raise CorrigendaError(f"The edits in {saved.directory} are for another model: its weights differ.")
    try:
        edited.method.load_state(tensors)
    except (KeyError, RuntimeError) as error:
        raise CorrigendaError(f"The edits saved in {saved.directory} cannot be read: {error}.") from error
    edited.edits = list(saved.edits)
    edited._ids = {edit.id for edit in saved.edits}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest_digest(manifest: dict[str, Any]) -> str:
    """SHA-256 of everything else that the manifest says."""
    rest = {name: value for name, value in manifest.items() if name != "check"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CorrigendaError(f"{path} is missing: {path.parent} holds no saved edits.") from None
    except (OSError, ValueError) as error:
        raise CorrigendaError(f"{path} cannot be read: {error}.") from None
    if not isinstance(data, dict):
        raise CorrigendaError(f"{path} must hold a JSON object.")
    return data
