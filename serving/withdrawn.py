"""What a server's routers know of undone edits: those of every store that a tenant sees, in one order of time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..editing.store.codec import fingerprint_of
from ..editing.store.history import History
from ..editing.token_router import TokenRouter


class WithdrawnEdit(NamedTuple):
    """An edit that its store has undone, and when (ISO 8601, as ledgers have it)."""

    id: str
    fingerprint: Tensor
    time: str


def withdrawn_edits(history: History) -> list[WithdrawnEdit]:
    """Those of one store, the last undone first."""
    found = ((history.edits[seq], entry) for seq, entry in history.withdrawn(history.applied()).items())
    return [WithdrawnEdit(stored.id, fingerprint_of(stored), _time(entry, stored.events)) for stored, entry in found]


def _time(entry: int, events: Sequence[dict[str, Any]]) -> str:
    return next(event.get("time", "") for event in events if event["seq"] == entry)


def withdraw(router: TokenRouter, withdrawn: Iterable[WithdrawnEdit], written: Sequence[str]) -> None:
    """Tell a router of these edits; `written` has the time of every edit that it has stored, by place."""
    latest_first = sorted(withdrawn, key=lambda edit: edit.time, reverse=True)
    times = {*written, *(edit.time for edit in latest_first)} if latest_first else ()
    rank = {time: number for number, time in enumerate(sorted(times))}
    router.withdraw(
        [edit.id for edit in latest_first],
        [edit.fingerprint for edit in latest_first],
        [rank[edit.time] for edit in latest_first],
        [rank[time] for time in written] if latest_first else [],
    )
