"""What the command line says of stored edits, as JSON can hold it."""

from __future__ import annotations

from typing import Any

from .history import DECLINED, History, StoredDeclined, StoredEdit
from .store import EditStore


def summary(history: History, stored: StoredEdit, status: str) -> dict[str, Any]:
    """One line of `log`."""
    return {
        "id": stored.id,
        "prompt": stored.prompt,
        "target": stored.target,
        "status": status,
        "time": stored.time,
        "author": stored.author,
        "method": history.store.body["config"].get("method"),
        "seq": stored.seq,
        "batch": stored.batch,
        "supersedes": [history.edits[seq].id for seq in stored.supersedes],
        "loss": stored.loss,
        "held": stored.held,
        "scores": stored.scores,
    }


def declined(history: History, stored: StoredDeclined) -> dict[str, Any]:
    """The line of `log` of an edit that was not written, and for the sake of which stored one."""
    return {
        "id": stored.id,
        "prompt": stored.prompt,
        "target": stored.target,
        "status": DECLINED,
        "for": stored.kept,
        "time": stored.time,
        "author": stored.author,
        "method": history.store.body["config"].get("method"),
        "seq": stored.seq,
    }


def details(store: EditStore, stored: StoredEdit) -> dict[str, Any]:
    """All that is recorded of an edit, but its tensors themselves."""
    history = store.history
    statuses = history.statuses()
    body = stored.body
    edit = body["edit"]
    kept = ("subject", "rephrases", "ground_truth", "localities", "metadata", "protected")
    return {
        **summary(history, stored, statuses[stored.seq]),
        **{name: edit.get(name) for name in kept},
        "steps": body.get("written", {}).get("steps"),
        "numbers": body.get("numbers"),
        "tensors": {**body["tensors"], "kept": not stored.dropped},
        "origin": body.get("origin"),
        "config": history.store.body["config"],
        "history": stored.events,
        "chain": [
            {
                "id": history.edits[seq].id,
                "seq": seq,
                "prompt": history.edits[seq].prompt,
                "target": history.edits[seq].target,
                "status": statuses[seq],
            }
            for seq in history.chain_of(stored.seq)
        ],
    }
