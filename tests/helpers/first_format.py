"""Writes folders of the first format of saved edits, which the project reads and no longer writes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from safetensors.torch import save_file

from corrigenda.editing.backbone.identity import tokenizer_digest, weight_sample

FILES = ("editing_config.json", "edits.jsonl", "memory.safetensors")


def write_first_format(edited, folder: str | Path) -> Path:
    """Save an edited model's edits as the first version did."""
    folder = Path(folder)
    edited.config.save_pretrained(folder)
    lines = [json.dumps(edit.to_dict(), ensure_ascii=False) for edit in edited.edits]
    (folder / "edits.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    tensors = {name: tensor.detach().contiguous() for name, tensor in edited.method.state().items()}
    tensors["base.weight_sample"] = weight_sample(edited.decoder, edited.config.layer)
    save_file(tensors, folder / "memory.safetensors")
    manifest = {
        "format": 1,
        "prompts": edited.prompts.to_dict(),
        "base": {
            "class": type(edited.model).__name__,
            "layers": len(edited.decoder),
            "widths": list(edited.decoder.widths(edited.config.layer)),
            "tokenizer": tokenizer_digest(edited.tokenizer),
        },
        "versions": {},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    resign(folder)
    return folder


def resign(folder: Path) -> None:
    """Make the manifest's checksums those of the files as they are now."""
    sign(folder, sha256={name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES})


def sign(folder: Path, **changed: object) -> None:
    """Change the manifest, and make its own checksum that of what it says then."""
    manifest = {**json.loads((folder / "manifest.json").read_text()), **changed}
    rest = {name: value for name, value in manifest.items() if name != "check"}
    manifest["check"] = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
