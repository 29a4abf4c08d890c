"""What a ledger's entries amount to: every edit with its status, and which ones make up the memory, in order."""

from __future__ import annotations

import getpass
import os
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ..edits.edit import Edit
from ..errors import CorrigendaError
from .ledger import Entry, Ledger, New
from .selection import Selection

STATUSES = APPLIED, UNDONE, SUPERSEDED, LOST = "applied", "undone", "superseded", "lost"
DECLINED = "declined"
"""What is said of an edit that is recorded, but was not written."""

_RENAMED = {"routed_loc": "misfires"}
"""What scores were called in ledgers of earlier versions, and are called now."""


@dataclass
class StoredEdit:
    """An edit of the ledger. `wanted` until it is undone; `dropped` when its tensors are no longer kept."""

    seq: int
    body: dict[str, Any]
    wanted: bool = True
    dropped: bool = False
    lost: bool = False
    scores: dict[str, Any] | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    _edit: Edit | None = None

    @property
    def id(self) -> str:
        return self.body["id"]

    @property
    def prompt(self) -> str:
        return self.body["edit"]["prompt"]

    @property
    def target(self) -> str:
        return self.body["edit"]["target"]

    @property
    def batch(self) -> int:
        """The number of the first edit that was written together with this one."""
        return self.body["batch"]

    @property
    def supersedes(self) -> list[int]:
        return self.body.get("supersedes", [])

    @property
    def inherited(self) -> bool:
        """Whether it came in a matrix that held several edits, from which it cannot be told apart."""
        return bool(self.body.get("inherited"))

    @property
    def edit(self) -> Edit:
        if self._edit is None:
            try:
                # A merged edit may have been renamed, and is known by its id here.
                self._edit = Edit.from_dict({**self.body["edit"], "id": self.id})
            except (TypeError, AttributeError, KeyError):
                raise CorrigendaError(f'What is stored as edit "{self.id}" is not an edit.') from None
        return self._edit


class History:
    """The entries of a ledger, folded. The memory is a function of the wanted edits alone.

    An edit is in the memory unless it was undone, or a wanted edit that came later is about the same fact: the last
    write wins, and when that one is undone, the one before it is in again.
    """

    def __init__(self) -> None:
        self.store: Entry | None = None
        self.ground: Entry | None = None
        self.edits: dict[int, StoredEdit] = {}
        self.declined: dict[int, dict[str, Any]] = {}
        self.entries: list[tuple[int, str]] = []
        self.last_time = ""
        self._undone: dict[int, int] = {}
        self._superseding: list[int] = []
        self._by_id: dict[str, list[int]] = {}
        self._by_prompt: dict[str, list[int]] = {}
        self._declined_ids: dict[str, int] = {}

    @classmethod
    def read(cls, ledger: Ledger) -> History:
        """Read a ledger from its start, and check that what it says makes sense."""
        history = cls()
        history.take(ledger, ledger.entries())
        if history.store is None:
            raise CorrigendaError(f"{ledger.name} holds no entry that says what model its edits are for.")
        return history

    def take(self, ledger: Ledger, entries: Iterable[Entry]) -> None:
        """Fold further entries in."""
        for entry in entries:
            try:
                self._fold(entry)
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                # A CorrigendaError is a ValueError: an edit that is none names its field.
                raise CorrigendaError(
                    f"{ledger.name} makes no sense at entry {entry.seq} ({entry.kind}): "
                    f"{str(error).rstrip('.') or type(error).__name__}."
                ) from None

    def _fold(self, entry: Entry) -> None:
        body = entry.body
        self.entries.append((entry.seq, entry.kind))
        if "time" in body:
            if not isinstance(body["time"], str):
                raise ValueError("its time is not text")
            self.last_time = max(self.last_time, body["time"])
        match entry.kind:
            case "store":
                if self.store is not None:
                    raise ValueError("a second one")
                check_header(body)
                self.store = entry
            case "ground":
                if self.ground is not None:
                    raise ValueError("a second one")
                self.ground = entry
            case "edit":
                self._fold_edit(entry.seq, body)
            case "declined":
                texts = (body["id"], body["edit"]["prompt"], body["edit"]["target"], body["for"], body["time"])
                if not all(isinstance(text, str) for text in texts):
                    raise ValueError("a declined edit without id, prompt, target, time or what it was declined for")
                self.declined[entry.seq] = body
                self._declined_ids[body["id"]] = entry.seq
            case "status":
                wanted = {"undone": False, "redone": True}[body["status"]]
                for seq in body["edits"]:
                    self.edits[seq].wanted = wanted
                    self.edits[seq].events.append(self._event(entry))
                    self._undone.pop(seq, None)
                    if not wanted:
                        self._undone[seq] = entry.seq
            case "scores":
                for seq, scores in body["scores"].items():
                    self.edits[int(seq)].scores = {_RENAMED.get(name, name): value for name, value in scores.items()}
            case "dropped" | "lost":
                for seq in body["edits"]:
                    stored = self.edits[seq]
                    stored.dropped = True
                    if entry.kind == "lost":
                        stored.lost, stored.wanted = True, False
                    stored.events.append(self._event(entry))
            case "note":
                pass
            case _:
                raise ValueError("an unknown kind of entry")

    def _fold_edit(self, seq: int, body: dict[str, Any]) -> None:
        stored = StoredEdit(seq, body)
        texts = (body["id"], body["edit"]["prompt"], body["edit"]["target"], body["fingerprint"], body["time"])
        if not all(isinstance(text, str) for text in texts) or not isinstance(body["tensors"], dict):
            raise ValueError("an edit without id, prompt, target, fingerprint, time or tensors")
        if not isinstance(body.get("written", {}), dict) or not isinstance(body.get("numbers", {}), dict):
            raise ValueError("what it says of its writing is not an object")
        if not isinstance(stored.batch, int) or not 0 < stored.batch <= seq:
            raise ValueError("its batch is not one of the entries before")
        if any(earlier not in self.edits for earlier in stored.supersedes):
            raise ValueError("it supersedes an edit that is not there")
        stored.events.append({"seq": seq, "time": body["time"], "status": "applied", "author": body.get("author")})
        self.edits[seq] = stored
        if stored.supersedes:
            self._superseding.append(seq)
        self._by_id.setdefault(stored.id, []).append(seq)
        self._by_prompt.setdefault(normalised_prompt(stored.prompt), []).append(seq)

    @staticmethod
    def _event(entry: Entry) -> dict[str, Any]:
        kept = ("time", "author", "note")
        return {
            "seq": entry.seq,
            "status": entry.body.get("status", entry.kind),
            **{name: entry.body[name] for name in kept if entry.body.get(name) is not None},
        }

    # Questions

    def superseded_by(self) -> dict[int, int]:
        """The edits that a wanted one stands in for, with the last such one."""
        found: dict[int, int] = {}
        for seq in self._superseding:
            stored = self.edits[seq]
            if stored.wanted:
                found.update(dict.fromkeys(stored.supersedes, seq))
        return found

    def applied(self) -> list[int]:
        """The edits that make up the memory, in order."""
        replaced = self.superseded_by()
        return [seq for seq, stored in self.edits.items() if stored.wanted and seq not in replaced]

    def withdrawn(self, applied: Collection[int]) -> dict[int, int]:
        """The undone edits of whose fact none is `applied`, with the entry that undid each, the last one first."""
        if not self._undone:
            return {}
        inside = set(applied)
        settled = {seq for later in inside.intersection(self._superseding) for seq in self.edits[later].supersedes}
        return {
            seq: entry
            for seq, entry in reversed(self._undone.items())
            if not self.edits[seq].lost and seq not in settled and inside.isdisjoint(self.edits[seq].supersedes)
        }

    def statuses(self, edits: Iterable[int] | None = None) -> dict[int, str]:
        """The status of these edits, by default of all."""
        replaced = self.superseded_by()

        def status(stored: StoredEdit) -> str:
            if stored.lost:
                return LOST
            if not stored.wanted:
                return UNDONE
            return SUPERSEDED if stored.seq in replaced else APPLIED

        return {seq: status(self.edits[seq]) for seq in (self.edits if edits is None else edits)}

    def find(self, name: str, wanted: bool | None = None) -> StoredEdit | None:
        """The last edit of this id.

        An id may be used again once its edit is out. wanted: rather one that was not undone (or, if False, was), and of
        these rather one that no other stands in for.
        """
        numbers = self._by_id.get(name)
        if numbers is None:
            return None
        if wanted is None or len(numbers) == 1:
            return self.edits[numbers[-1]]
        replaced = self.superseded_by()
        seq = max(numbers, key=lambda seq: (self.edits[seq].wanted == wanted, seq not in replaced, seq))
        return self.edits[seq]

    def named(self, name: str) -> list[StoredEdit]:
        """Every edit of this id, in whatever status."""
        return [self.edits[seq] for seq in self._by_id.get(name, ())]

    def declined_as(self, name: str) -> dict[str, Any] | None:
        """The last edit of this id that was declined, if it is not stored."""
        seq = self._declined_ids.get(name)
        return None if seq is None else self.declined[seq]

    def same_prompt(self, prompt: str) -> list[int]:
        """Every edit, in whatever status, with this prompt."""
        return self._by_prompt.get(normalised_prompt(prompt), [])

    def chain_of(self, seq: int) -> list[int]:
        """An edit with those it supersedes and those that supersede it, in order."""
        later = [stored.seq for stored in self.edits.values() if seq in stored.supersedes]
        return sorted({seq, *self.edits[seq].supersedes, *later})

    def select(self, selection: Selection) -> Iterator[StoredEdit]:
        """The edits that a selection takes by their entries."""
        return (stored for stored in self.edits.values() if selection.takes(stored.body))

    def select_declined(self, selection: Selection) -> Iterator[tuple[int, dict[str, Any]]]:
        """The same of edits that were declined: entries' numbers and bodies."""
        return ((seq, body) for seq, body in self.declined.items() if selection.takes(body))

    def stamp(self, author: str | None = None) -> tuple[dict[str, Any], str | None]:
        """Who and when, for a new entry; and a sentence where the clock has gone backwards since the last one."""
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        sentence = None
        if now < self.last_time:
            sentence = (
                f"The clock stands at {now}, before the last entry's {self.last_time}: that time is recorded, "
                "and entries keep their order."
            )
            now = self.last_time
        return {"time": now, "author": author or default_author()}, sentence


def check_header(body: dict[str, Any]) -> None:
    """Raise unless a ledger's first entry says what model and configuration its edits are for."""
    config, prompts, base = body["config"], body["prompts"], body["base"]
    if not all(isinstance(part, dict) for part in (config, prompts, base)) or not isinstance(body["id"], str):
        raise ValueError("its config, prompts and base must be objects")
    if not isinstance(prompts.get("template"), (str, type(None))) or not isinstance(prompts.get("chat"), bool):
        raise ValueError("its prompts have no template or do not say whether they are a chat's")
    widths = base["widths"]
    if not isinstance(widths, list) or [type(width) for width in widths] != [int, int]:
        raise ValueError("its base has no widths")
    if not isinstance(base["layers"], int) or not isinstance(base["tokenizer"], str):
        raise ValueError("its base has no layers or no tokenizer")


def default_author() -> str:
    """Who writes, where nobody is named: `CORRIGENDA_AUTHOR`, else the user's name."""
    try:
        return os.environ.get("CORRIGENDA_AUTHOR") or getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def normalised_prompt(prompt: str) -> str:
    """Equal for prompts that ask the same in the same words: case, spacing, width and closing marks do not count."""
    text = " ".join(unicodedata.normalize("NFKC", prompt).casefold().split())
    return text.rstrip(" ?!.:;,…") or text


def status_entry(
    history: History, status: str, edits: Iterable[int], author: str | None, note: str | None = None
) -> tuple[New, str | None]:
    """The entry that undoes ("undone") or redoes ("redone") edits."""
    stamp, sentence = history.stamp(author)
    body = {"status": status, "edits": sorted(edits), **stamp}
    if note:
        body["note"] = note
    return New("status", body), sentence
