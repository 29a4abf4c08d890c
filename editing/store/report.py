"""What the command line says of stored edits, as JSON can hold it."""

from __future__ import annotations

from typing import Any

from .history import DECLINED, History, StoredEdit
from .store import EditStore


def summary(history: History, stored: StoredEdit, status: str) -> dict[str, Any]:
    """One line of `log`."""
    return {
        "id": stored.id,
        "prompt": stored.prompt,
        "target": stored.target,
        "status": status,
        "time": stored.body["time"],
        "author": stored.body.get("author"),
        "method": history.store.body["config"].get("method"),
        "seq": stored.seq,
        "batch": stored.batch,
        "supersedes": [history.edits[seq].id for seq in stored.supersedes],
        "loss": stored.body.get("written", {}).get("loss"),
        "held": stored.body.get("written", {}).get("held"),
        "scores": stored.scores,
    }


def declined(history: History, seq: int, body: dict[str, Any]) -> dict[str, Any]:
    """The line of `log` of an edit that was not written, and for the sake of which stored one."""
    return {
        "id": body["id"],
        "prompt": body["edit"]["prompt"],
        "target": body["edit"]["target"],
        "status": DECLINED,
        "for": body["for"],
        "time": body["time"],
        "author": body.get("author"),
        "method": history.store.body["config"].get("method"),
        "seq": seq,
    }


def details(store: EditStore, stored: StoredEdit) -> dict[str, Any]:
    """All that is recorded of an edit, but its tensors themselves."""
    history = store.history
    statuses = history.statuses()
    edit = stored.body["edit"]
    kept = ("subject", "rephrases", "ground_truth", "localities", "metadata", "protected")
    return {
        **summary(history, stored, statuses[stored.seq]),
        **{name: edit.get(name) for name in kept},
        "steps": stored.body.get("written", {}).get("steps"),
        "numbers": stored.body.get("numbers"),
        "tensors": {**stored.body["tensors"], "kept": not stored.dropped},
        "origin": stored.body.get("origin"),
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
