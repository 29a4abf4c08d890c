"""What a server says of its edits: one of them, what was decided for a request, and a change that is to be."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..editing.edits.answer_start import UNSAID, AnswerPlan
from ..editing.store.codec import fingerprint_of
from ..editing.store.snapshots import Snapshot
from ..editing.store.stored import StoredEdit
from .memory import edit_key
from .withdrawn import WithdrawnEdit


class ServedEdit(NamedTuple):
    """An edit of a store that is served. `id`, `prompt` and `target` make it what `explained` shows."""

    key: str
    store: Path
    tenant: str | None
    stored: StoredEdit
    fingerprint: bytes

    @property
    def id(self) -> str:
        return self.stored.id

    @property
    def prompt(self) -> str:
        return self.stored.prompt

    @property
    def target(self) -> str:
        return self.stored.target

    def to_dict(self, store: str) -> dict[str, Any]:
        """As a client is told it; `store` is what its folder is called, for a path is none of a client's business."""
        return {
            "id": self.id,
            "prompt": self.prompt,
            "target": self.target,
            "tenant": self.tenant,
            "store": store,
            "time": self.stored.time,
            "author": self.stored.author,
        }


class Admission(NamedTuple):
    """What was decided for a request when it came: the edit that answers it, if any, and by how much.

    lost: an edit was found, but its rows are missing, so the base model answers
    reason: what kept `nearest` from answering, said of the request, of a router that knows
    plan: how the edit's answer can be said, and how far the prompt has it
    snapshot: the name of what all edits were that it was decided among (`Catalogue`)
    """

    edit: ServedEdit | None
    nearest: ServedEdit | None
    score: float
    margin: float
    version: int
    tenant: str | None
    lost: bool = False
    reason: str | None = None
    plan: AnswerPlan | None = None
    snapshot: str = ""

    @property
    def key(self) -> str | None:
        return None if self.edit is None else self.edit.key

    def without_edit(self) -> Admission:
        """The same of a request whose answer was not its edit's."""
        return self._replace(edit=None, plan=None, reason=UNSAID)

    @property
    def told(self) -> tuple[str | None, int, str]:
        """What a client is told: the edit's id, the version, the snapshot."""
        return None if self.edit is None else self.edit.id, self.version, self.snapshot


class ReadAt(NamedTuple):
    """As of which snapshot a store was read; fixed: whether it stays at that one until another is named."""

    snapshot: Snapshot
    fixed: bool


class Change(NamedTuple):
    """Stores as they would be served next: what was read, not yet answered by.

    needed: by folder, the keys of the edits whose rows must be loaded first, with their numbers in its ledger
    withdrawn: by store, the edits that it has undone
    at: as of which snapshot each store was read
    gone: stores that are served no longer; tenants_gone: tenants that there are no longer
    """

    stores: dict[tuple[str | None, Path], list[ServedEdit]]
    needed: dict[Path, dict[str, int]]
    added: list[ServedEdit]
    removed: list[ServedEdit]
    withdrawn: dict[tuple[str | None, Path], list[WithdrawnEdit]]
    at: dict[tuple[str | None, Path], ReadAt]
    gone: frozenset[tuple[str | None, Path]] = frozenset()
    tenants_gone: frozenset[str] = frozenset()

    def to_dict(self, version: int) -> dict[str, Any]:
        """What a client is told of it, once it is that version."""
        added, removed = ([edit.id for edit in edits] for edits in (self.added, self.removed))
        return {"version": version, "added": added, "removed": removed}


def words_of(fingerprint: bytes) -> Tensor:
    """int32 `[n]` of a fingerprint's bytes."""
    if not fingerprint:
        return torch.zeros(0, dtype=torch.int32, device="cpu")
    return torch.frombuffer(bytearray(fingerprint), dtype=torch.int32)


def served_edit(stored: StoredEdit, path: Path, tenant: str | None) -> ServedEdit:
    return ServedEdit(edit_key(stored), path, tenant, stored, fingerprint_of(stored).numpy().tobytes())


def name_of_all(snapshots: Sequence[Snapshot]) -> str:
    """One name for what stores were at: a single one's own, else how many there are and a digest of their names."""
    if len(snapshots) == 1:
        return str(snapshots[0])
    digest = hashlib.sha256(" ".join(map(str, snapshots)).encode()).hexdigest()[:16]
    return f"{len(snapshots)}-stores-{digest}"
