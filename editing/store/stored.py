"""One edit of a ledger: what decides is held, and the rest is read when it is asked for."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

from ..edits.edit import Edit
from ..errors import CorrigendaError
from .reading import Entry
from .sense import fingerprint_bytes

_RENAMED = {"routed_loc": "misfires"}
"""What scores were called in ledgers of earlier versions, and are called now."""


class StoredEdit:
    """An edit of the ledger.

    wanted: until it is undone; and not one that was left out because it did not hold, `unsolved`, until it is redone.
    dropped: when its tensors are no longer kept.

    What decides is held, text and numbers; all else that the ledger says of it is read when it is asked for.
    """

    __slots__ = (
        *("seq", "id", "prompt", "target", "author", "time", "batch", "supersedes", "fingerprint", "bytes"),
        *("inherited", "loss", "wanted", "dropped", "lost", "later", "scored", "_read", "_body", "_edit"),
        *("held", "unsolved", "_left_out"),
    )

    def __init__(
        self, seq: int, body: dict[str, Any], read: Callable[[int], Entry] | None = None, unsolved: bool = False
    ) -> None:
        """Of the body of entry `seq`, which `read` can read again. Raises KeyError, TypeError, ValueError of others."""
        self.seq = seq
        self.id: str = body["id"]
        self.prompt: str = body["edit"]["prompt"]
        self.target: str = body["edit"]["target"]
        self.author: str | None = body.get("author")
        self.time: str = body["time"]
        self.batch: int = body["batch"]
        """The number of the first edit that was written together with this one."""
        self.supersedes = array("q", body.get("supersedes", ()))
        self.fingerprint = fingerprint_bytes(body["fingerprint"])
        """int32 words."""
        self.bytes: int = body["tensors"]["bytes"]
        self.inherited = bool(body.get("inherited"))
        """Whether it came in a matrix that held several edits, from which it cannot be told apart."""
        self.loss = body.get("written", {}).get("loss")
        self.held: bool | None = body.get("written", {}).get("held")
        self.wanted, self.dropped, self.lost = not unsolved, False, False
        self.unsolved = self._left_out = unsolved
        self.later: list[int] = []
        """The entries after its own that are about it."""
        self.scored: int | None = None
        """The entry that has its scores."""
        self._read = read
        self._body = body if read is None else None
        self._edit: Edit | None = None

    @property
    def body(self) -> dict[str, Any]:
        """All that the ledger says of it."""
        return self._body if self._read is None else self._read(self.seq).body

    @property
    def events(self) -> list[dict[str, Any]]:
        """What became of it, entry by entry."""
        status = "unsolved" if self._left_out else "applied"
        first = {"seq": self.seq, "time": self.time, "status": status, "author": self.author}
        return [first, *(_event(self._read(seq)) for seq in self.later)]

    @property
    def scores(self) -> dict[str, Any] | None:
        if self.scored is None:
            return None
        of_edit = self._read(self.scored).body["scores"][str(self.seq)]
        return {_RENAMED.get(name, name): value for name, value in of_edit.items()}

    @property
    def edit(self) -> Edit:
        if self._edit is None:
            self._edit = self.read_edit()
        return self._edit

    def read_edit(self) -> Edit:
        """The edit, which is not held."""
        try:
            # A merged edit may have been renamed, and is known by its id here.
            return Edit.from_dict({**self.body["edit"], "id": self.id})
        except (TypeError, AttributeError, KeyError):
            raise CorrigendaError(f'What is stored as edit "{self.id}" is not an edit.') from None


class StoredDeclined:
    """An edit that is recorded, but was not written, for the sake of a stored one."""

    __slots__ = ("_read", "author", "id", "kept", "prompt", "seq", "target", "time")

    def __init__(self, seq: int, body: dict[str, Any], read: Callable[[int], Entry]) -> None:
        self.seq = seq
        self.id: str = body["id"]
        self.prompt: str = body["edit"]["prompt"]
        self.target: str = body["edit"]["target"]
        self.kept: str = body["for"]
        """The id of the edit that stands."""
        self.time: str = body["time"]
        self.author: str | None = body.get("author")
        self._read = read

    @property
    def body(self) -> dict[str, Any]:
        """All that the ledger says of it."""
        return self._read(self.seq).body


def _event(entry: Entry) -> dict[str, Any]:
    kept = ("time", "author", "note")
    return {
        "seq": entry.seq,
        "status": entry.body.get("status", entry.kind),
        **{name: entry.body[name] for name in kept if entry.body.get(name) is not None},
    }
