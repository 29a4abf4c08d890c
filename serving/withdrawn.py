"""What a server's routers know of undone edits: those of every store that a tenant sees, in one order of time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor

from ..editing.routers.router import EditRouter
from ..editing.store.codec import fingerprint_of
from ..editing.store.history import History
from ..editing.store.stored import StoredEdit

Moment = tuple[str, int]
"""When an entry was written: its time (ISO 8601, as ledgers have it), and its number.

Times of one ledger never descend, but where the clock was set back they stand still: there the number decides, as it
does for the model that was edited.
"""


class WithdrawnEdit(NamedTuple):
    """An edit that its store has undone, and when."""

    stored: StoredEdit
    fingerprint: Tensor
    undone: Moment

    @property
    def id(self) -> str:
        return self.stored.id

    def to_dict(self, store: str, tenant: str | None) -> dict[str, Any]:
        """As a client is told it; `store` is what its folder is called."""
        return {
            "id": self.id,
            "prompt": self.stored.prompt,
            "target": self.stored.target,
            "status": "unsolved" if self.stored.unsolved else "undone",
            "tenant": tenant,
            "store": store,
            "time": self.stored.time,
            "author": self.stored.author,
            "undone": self.undone[0],
        }


def withdrawn_edits(history: History) -> list[WithdrawnEdit]:
    """Those of one store, the last undone first."""
    found = ((history.edits[seq], entry) for seq, entry in history.withdrawn(history.applied()).items())
    return [
        WithdrawnEdit(stored, fingerprint_of(stored), (history.entry(entry).body.get("time", ""), entry))
        for stored, entry in found
    ]


def withdraw(router: EditRouter, withdrawn: Iterable[WithdrawnEdit], written: Iterable[StoredEdit]) -> None:
    """Tell a router of these edits; `written` are the edits that it has stored, by place."""
    latest_first = sorted(withdrawn, key=lambda edit: edit.undone, reverse=True)
    moments = [(stored.time, stored.seq) for stored in written] if latest_first else []
    rank = {moment: number for number, moment in enumerate(sorted({*moments, *(edit.undone for edit in latest_first)}))}
    router.withdraw(
        [edit.id for edit in latest_first],
        [edit.fingerprint for edit in latest_first],
        [rank[edit.undone] for edit in latest_first],
        [rank[moment] for moment in moments],
    )
