"""What a ledger's entries amount to: every edit with its status, and which ones make up the memory, in order."""

from __future__ import annotations

import getpass
import hashlib
import os
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from ..errors import CorrigendaError
from .ledger import Ledger, New
from .reading import Entry
from .selection import Selection
from .sense import check_edit, check_header, check_missing, check_numbers, check_stamp, check_tensors, check_texts
from .stored import StoredDeclined, StoredEdit

STATUSES = APPLIED, UNDONE, SUPERSEDED, UNSOLVED, LOST = "applied", "undone", "superseded", "unsolved", "lost"
DECLINED = "declined"
"""What is said of an edit that is recorded, but was not written."""


class History:
    """The entries of a ledger, folded. The memory is a function of the wanted edits alone.

    An edit is in the memory unless it was undone, or left out as unsolved, or a wanted edit that came later is about
    the same fact: the last write wins, and when that one is undone, the one before it is in again.
    """

    def __init__(self, ledger: Ledger | None = None) -> None:
        self.store: Entry | None = None
        self.ground: Entry | None = None
        self.edits: dict[int, StoredEdit] = {}
        self.declined: dict[int, StoredDeclined] = {}
        self.missing: list[dict[str, Any]] = []
        """What repairs found missing: how many entries were `found`, of as many `entries` as `head.json` named."""
        self.rule: str | None = None
        """The rule by which the edits are found (`EditRouter.rule`), as far as the ledger says it."""
        self.last_time = ""
        self._ledger = ledger
        self._held: Entry | None = None
        self._authors: dict[str, str] = {}
        self._out: dict[int, int] = {}
        self._superseding: list[int] = []
        self._by_id: dict[str, list[int]] = {}
        self._by_prompt: dict[bytes, list[int]] = {}
        self._declined_ids: dict[str, int] = {}

    @classmethod
    def read(cls, ledger: Ledger, until: int | None = None) -> History:
        """Read a ledger from its start, to this entry or its end, and check that what it says makes sense."""
        history = cls(ledger)
        history.take(ledger.entries(until=until))
        if history.store is None:
            raise CorrigendaError(f"{ledger.name} holds no entry that says what model its edits are for.")
        return history

    def take(self, entries: Iterable[Entry]) -> None:
        """Fold further entries in."""
        for entry in entries:
            try:
                self._fold(entry)
            except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
                # A CorrigendaError is a ValueError: an edit that is none names its field.
                raise CorrigendaError(
                    f"{self._ledger.name} makes no sense at entry {entry.seq} ({entry.kind}): "
                    f"{str(error).rstrip('.') or type(error).__name__}."
                ) from None

    def entry(self, seq: int) -> Entry:
        """An entry that was folded in, read again; the last one that was asked for is held."""
        if self._held is None or self._held.seq != seq:
            self._held = self._ledger.entry(seq)
        return self._held

    def read_from(self, ledger: Ledger) -> None:
        """Read entries again in a copy from now on: the ledger that they were read in is about to be closed."""
        self._ledger = ledger

    def _fold(self, entry: Entry) -> None:
        body = entry.body
        check_stamp(body)
        self.last_time = max(self.last_time, body.get("time", ""))
        match entry.kind:
            case "store":
                if self.store is not None:
                    raise ValueError("a second one")
                check_header(body)
                self.store = entry
            case "ground":
                if self.ground is not None:
                    raise ValueError("a second one")
                check_tensors(body["tensors"])
                self.ground = entry
                self._fold_rule(body)
            case "edit" | "unsolved":
                self._fold_edit(entry.seq, body, entry.kind == UNSOLVED)
            case "declined":
                check_texts(body, ("id", "for", "time"))
                check_texts(body["edit"], ("prompt", "target"))
                self.declined[entry.seq] = StoredDeclined(entry.seq, body, self.entry)
                self._declined_ids[body["id"]] = entry.seq
            case "status":
                wanted = {"undone": False, "redone": True}[body["status"]]
                for stored in self._named(body["edits"]):
                    stored.wanted, stored.unsolved = wanted, False
                    stored.later.append(entry.seq)
                    self._out.pop(stored.seq, None)
                    if not wanted:
                        self._out[stored.seq] = entry.seq
            case "scores":
                for number, scores in body["scores"].items():
                    if str(int(number)) != number or not isinstance(scores, dict):
                        raise ValueError("scores that are not an edit's")
                    self.edits[int(number)].scored = entry.seq
            case "dropped" | "lost":
                for stored in self._named(body["edits"]):
                    stored.dropped = True
                    if entry.kind == "lost":
                        stored.lost, stored.wanted = True, False
                    stored.later.append(entry.seq)
            case "note":
                if "missing" in body:
                    check_missing(body["missing"])
                    self.missing.append(body["missing"])
                self._fold_rule(body)
            case _:
                raise ValueError("an unknown kind of entry")

    def _fold_rule(self, body: dict[str, Any]) -> None:
        if "rule" in body:
            check_texts(body, ("rule",))
            self.rule = body["rule"]

    def _named(self, numbers: Any) -> list[StoredEdit]:
        """The edits that an entry names, each once: an entry that names one often would take memory for each time."""
        check_numbers(numbers)
        missing = next((seq for seq in numbers if seq not in self.edits), None)
        if missing is not None:
            raise ValueError(f"there is no edit at entry {missing}")
        return [self.edits[seq] for seq in numbers]

    def _fold_edit(self, seq: int, body: dict[str, Any], unsolved: bool) -> None:
        check_edit(seq, body)
        if any(earlier not in self.edits for earlier in body.get("supersedes", ())):
            raise ValueError("it supersedes an edit that is not there")
        stored = StoredEdit(seq, body, self.entry, unsolved)
        if stored.author is not None:
            stored.author = self._authors.setdefault(stored.author, stored.author)
        self.edits[seq] = stored
        if unsolved:
            self._out[seq] = seq
        if stored.supersedes:
            self._superseding.append(seq)
        self._by_id.setdefault(stored.id, []).append(seq)
        self._by_prompt.setdefault(_digest_of(stored.prompt), []).append(seq)

    # Questions

    @property
    def claimed(self) -> int:
        """How many bytes of tensors the entries say that there are."""
        begun = [entry.body.get("tensors", {}).get("bytes", 0) for entry in (self.store, self.ground) if entry]
        return sum(begun) + sum(stored.bytes for stored in self.edits.values() if not stored.dropped)

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
        """The undone and unsolved edits of whose fact none is `applied`, the last one first.

        With each goes the entry that took it out: of an unsolved one its own.
        """
        if not self._out:
            return {}
        inside = set(applied)
        settled = {seq for later in inside.intersection(self._superseding) for seq in self.edits[later].supersedes}
        return {
            seq: entry
            for seq, entry in reversed(self._out.items())
            if not self.edits[seq].lost and seq not in settled and inside.isdisjoint(self.edits[seq].supersedes)
        }

    def statuses(self, edits: Iterable[int] | None = None) -> dict[int, str]:
        """The status of these edits, by default of all."""
        replaced = self.superseded_by()

        def status(stored: StoredEdit) -> str:
            if stored.lost:
                return LOST
            if not stored.wanted:
                return UNSOLVED if stored.unsolved else UNDONE
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

    def taken_out_as(self, name: str) -> str:
        """Why the last edit of this id that is out of the memory is out: "undone" or "unsolved"."""
        stored = self.find(name, wanted=False)
        return UNSOLVED if stored is not None and stored.unsolved else UNDONE

    def named(self, name: str) -> list[StoredEdit]:
        """Every edit of this id, in whatever status."""
        return [self.edits[seq] for seq in self._by_id.get(name, ())]

    def declined_as(self, name: str) -> StoredDeclined | None:
        """The last edit of this id that was declined, if it is not stored."""
        seq = self._declined_ids.get(name)
        return None if seq is None else self.declined[seq]

    def same_prompt(self, prompt: str) -> list[int]:
        """Every edit, in whatever status, with this prompt."""
        return self._by_prompt.get(_digest_of(prompt), [])

    def chain_of(self, seq: int) -> list[int]:
        """An edit with those it supersedes and those that supersede it, in order."""
        later = [stored.seq for stored in self.edits.values() if seq in stored.supersedes]
        return sorted({seq, *self.edits[seq].supersedes, *later})

    def select(self, selection: Selection) -> Iterator[StoredEdit]:
        """The edits that a selection takes by their entries."""
        return filter(selection.takes, self.edits.values())

    def select_declined(self, selection: Selection) -> Iterator[StoredDeclined]:
        """The same of edits that were declined."""
        return filter(selection.takes, self.declined.values())

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


def _digest_of(prompt: str) -> bytes:
    """What a prompt is found again by: normalised, a text may have many times its length."""
    return hashlib.blake2b(normalised_prompt(prompt).encode(), digest_size=16).digest()


def status_entry(
    history: History, status: str, edits: Iterable[int], author: str | None, note: str | None = None
) -> tuple[New, str | None]:
    """The entry that undoes ("undone") or redoes ("redone") edits."""
    stamp, sentence = history.stamp(author)
    body = {"status": status, "edits": sorted(edits), **stamp}
    if note:
        body["note"] = note
    return New("status", body), sentence
