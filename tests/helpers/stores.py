"""Stores of made-up records, without a model: what the ledger does is the same, and takes milliseconds."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
import torch

from corrigenda.editing import Edit
from corrigenda.editing.errors import CorrigendaError
from corrigenda.editing.store.codec import fingerprint_text, packed
from corrigenda.editing.store.ledger import New
from corrigenda.editing.store.store import EditStore

WIDTH, OUT_WIDTH, TOP_K = 64, 8, 5
CONFIGS = {
    "associative": {"method": "associative", "router": "tokens"},
    "memoir": {"method": "memoir", "top_k": TOP_K},
}


def header(method: str = "associative", **settings) -> dict:
    base = {"name": None, "layers": 4, "widths": [WIDTH, OUT_WIDTH], "tokenizer": "t"}
    return {"config": {**CONFIGS[method], **settings}, "prompts": {"template": "{prompt}", "chat": False}, "base": base}


def new_store(folder: str | Path | None = None, method: str = "associative", **settings) -> EditStore:
    sample = packed({"base.weight_sample": torch.arange(6.0)})
    if folder is None:
        return EditStore.temporary(header(method, **settings), sample)
    return EditStore.create(folder, header(method, **settings), sample)


def record(name: str, method: str = "associative") -> dict[str, torch.Tensor]:
    """The tensors of one edit, the same for the same name."""
    generator = torch.Generator().manual_seed(sum(name.encode()) * 7919)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    if method == "memoir":
        return {"x": normal(3, TOP_K), "h": normal(3, OUT_WIDTH)}
    return {"keys": normal(3, WIDTH), "values": normal(3, OUT_WIDTH)}


def add(
    store: EditStore,
    *edits: Edit,
    author: str = "ann",
    supersedes: list[list[int]] | None = None,
    known_by: list[int] | None = None,
) -> list[int]:
    """Record a batch of edits, each by a fingerprint of its own, or all by `known_by`."""
    method = store.header["config"]["method"]
    stamp, new = store.stamp(author), []
    if store.history.ground is None:
        new.append(New("ground", stamp, packed({"memory.background": torch.zeros(WIDTH)})))
    first = store.ledger.count + len(new) + 1
    for place, edit in enumerate(edits):
        own = [place, 100 + sum(edit.prompt.encode())] if known_by is None else known_by
        fingerprint = torch.tensor(own, dtype=torch.int32)
        body = {
            "id": edit.id,
            "edit": edit.to_dict(),
            "batch": first,
            "fingerprint": fingerprint_text(fingerprint),
            "numbers": {"alpha": 0.75} if method == "memoir" else {},
            "written": {"loss": 0.01, "steps": 3},
            "supersedes": (supersedes or [[]] * len(edits))[place],
            **stamp,
        }
        new.append(New("edit", body, packed(record(edit.id, method))))
    store.append(new)
    return list(range(first, first + len(edits)))


def edit(name: str, target: str = "yes") -> Edit:
    return Edit(f"What of {name}?", target, id=name)


def log_of(store: EditStore) -> list[tuple[str, str, str, str]]:
    """What a user would see, and what the memory would be made of."""
    statuses = store.history.statuses()
    return [(s.id, s.prompt, s.target, statuses[s.seq]) for s in store.history.edits.values()]


@contextlib.contextmanager
def refusal(*words):
    """Within: a CorrigendaError is raised, one sentence that holds each of `words`."""
    with pytest.raises(CorrigendaError) as raised:
        yield
    message = str(raised.value)
    assert message.endswith(".") and "\n" not in message and not re.search(r"\.\s+[A-Z]", message), message
    for word in words:
        assert str(word) in message, message


def reopened(folder, write=False):
    return EditStore.open(folder, write=write)
