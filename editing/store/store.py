"""The store of one model's edits: a ledger and what it amounts to; all that needs no model is done here."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..collecting import uncollected
from ..edits.edit import Edit
from ..errors import CorrigendaError, FieldError
from ..shown import name, shown
from .files import LEDGER_NAME
from .folder import Folder
from .history import APPLIED, UNSOLVED, History, StoredEdit, status_entry
from .ledger import Ledger, New
from .selection import Selection
from .snapshots import Snapshot

OnConflict = str | Callable[[Edit, Edit], str]
CONFLICT_POLICIES = ("supersede", "keep")


@dataclass
class Change:
    """What an undo or a redo did: the edits whose status it changed, and what that meant for others."""

    edits: list[StoredEdit]
    notes: list[str] = field(default_factory=list)


class EditStore:
    """A ledger that was read to its end, with its history.

    notices: sentences on what happened beside what was asked for (a clock gone backwards, an edit superseded).
    pinned: the snapshot that it stays at (`at`)
    follows: given entries that are to be written, and what writes them: writes those of the process that all follow
    """

    def __init__(self, ledger: Ledger, history: History, pinned: Snapshot | None = None) -> None:
        self.ledger = ledger
        self.history = history
        self.pinned = pinned
        self.follows: Callable[[Sequence[New], Callable[[Iterable[New]], list[int]]], list[int]] | None = None
        self.notices: list[str] = []

    @property
    def directory(self) -> Path | None:
        return self.ledger.directory

    @property
    def header(self) -> dict[str, Any]:
        """What model and configuration the edits are for."""
        return self.history.store.body

    @classmethod
    def open(cls, directory: str | Path | Folder, *, write: bool = False, head: bool = True) -> EditStore:
        """The store in a folder; with `write`, as its only writer (`Ledger.open`)."""
        ledger = Ledger.open(directory, write=write, head=head)
        try:
            with ledger.snapshot(), uncollected():
                ledger.check_structure()
                history = History.read(ledger)
                ledger.check_claim(history.claimed)
        except BaseException:
            ledger.close()
            raise
        return cls(ledger, history)

    @classmethod
    def at(cls, directory: str | Path | Folder, snapshot: Snapshot) -> EditStore:
        """The store in a folder as it was at a snapshot; it stays so, and is for reading alone."""
        ledger = Ledger.open(directory)
        try:
            with ledger.snapshot():
                ledger.check_structure()
                history = History.read(ledger, snapshot.entries)
                if Snapshot.of(ledger) != snapshot:
                    raise CorrigendaError(
                        f"{ledger.name} holds no snapshot {snapshot}: it is not of this ledger, or of one that was cut "
                        "back."
                    )
                ledger.check_claim(history.claimed)
        except BaseException:
            ledger.close()
            raise
        return cls(ledger, history, snapshot)

    @classmethod
    def temporary(cls, header: dict[str, Any], tensors: bytes) -> EditStore:
        """A new store that is gone when it is closed."""
        ledger = Ledger.temporary()
        _begin(ledger, header, tensors)
        return cls(ledger, History.read(ledger))

    @classmethod
    def begun_as(cls, first: New) -> EditStore:
        """A temporary one that begins with the entry of another (`first_entry`), and so has its name."""
        ledger = Ledger.temporary()
        ledger.append([first])
        return cls(ledger, History.read(ledger))

    @property
    def first_entry(self) -> New:
        """What the ledger begins with: what its edits are for."""
        entry = self.history.store
        return New(entry.kind, entry.body, self.ledger.tensors(entry.seq, entry.body["tensors"]))

    @classmethod
    def create(cls, directory: str | Path, header: dict[str, Any], tensors: bytes) -> EditStore:
        """A new store in a new or empty folder, open for writing."""
        return cls.filled(directory, lambda ledger: _begin(ledger, header, tensors))

    @classmethod
    def filled(cls, directory: str | Path, fill: Callable[[Ledger], object]) -> EditStore:
        """A store in a new or empty folder with the entries that `fill` appends, open for writing."""
        ledger = Ledger.create(directory, fill)
        return cls(ledger, History.read(ledger))

    @property
    def snapshot(self) -> Snapshot:
        """The name of what was read."""
        return self.pinned or Snapshot.of(self.ledger)

    def close(self) -> None:
        self.ledger.close()

    def append(self, entries: Iterable[New], *, dropping: Sequence[int] = ()) -> list[int]:
        """Write entries in one transaction and fold them in; they are on the disk when this returns."""
        before = self.ledger.count, self.ledger.chain
        new = map(_named, entries)  # one by one: the tensors of all that is merged may not fit into memory

        def write(these: Iterable[New]) -> list[int]:
            return self.ledger.append(these, dropping=dropping)

        numbers = write(new) if self.follows is None else self.follows(list(new), write)
        self.ledger.count, self.ledger.chain = before
        # Read back: what is folded in is what any other reader of the ledger gets.
        self.history.take(self.ledger.entries(after=before[0]))
        return numbers

    def refresh(self) -> bool:
        """Fold in what another process has written since; whether there was anything."""
        if self.pinned is not None:
            return False
        before = self.ledger.count
        with self.ledger.snapshot():
            self.history.take(self.ledger.entries(after=before))
        return self.ledger.count > before

    def copy(self, directory: str | Path | None) -> EditStore:
        """The same store in a new or empty folder, or a temporary one; open for writing."""
        if directory is None:
            other = Ledger.temporary()
            self.ledger.copy_to(other)
            return EditStore(other, History.read(other))
        return self.filled(directory, self.ledger.copy_to)

    def stamp(self, author: str | None = None) -> dict[str, Any]:
        """Who and when, for a new entry."""
        stamp, sentence = self.history.stamp(author)
        if sentence is not None:
            self.notices.append(sentence)
        return stamp

    # Undo and redo

    def selected(self, edits: Selection | Iterable[str], *, wanted: bool | None = None) -> list[StoredEdit]:
        """The edits of a selection, or of these ids; an unknown id raises.

        wanted: of the edits of one id, which to take: True to undo, False to redo (`History.find`). Edits whose tensors
        are gone cannot be redone: by author and time they are passed over, by id `redo` says so. Unsolved ones are
        redone by id alone.
        """
        selection = edits if isinstance(edits, Selection) else Selection(tuple(edits))
        chosen = {}
        for asked in selection.ids:
            stored = self.find(asked, wanted)
            if stored is None:
                raise CorrigendaError(f'There is no edit with the id "{asked}" in {self.ledger.name}.')
            chosen[stored.seq] = stored
        if selection.by_entry:
            for stored in self.history.select(selection):
                if wanted is False and (stored.dropped or stored.unsolved):
                    why = "its tensors are no longer kept" if stored.dropped else "it does not hold"
                    self.notices.append(f'Edit "{stored.id}" stays out, for {why}.')
                    continue
                chosen[stored.seq] = stored
        return [chosen[seq] for seq in sorted(chosen)]

    def find(self, asked: str, wanted: bool | None = None) -> StoredEdit | None:
        """The edit of an id (`History.find`), which may be given as it is shown: not every one can be typed."""
        stored = self.history.find(asked, wanted)
        if stored is not None:
            return stored
        like = {edit.id for edit in self.history.edits.values() if shown(edit.id) == asked}
        if len(like) > 1:
            raise CorrigendaError(f'Several edits of {self.ledger.name} have an id that is shown as "{asked}".')
        return self.history.find(like.pop(), wanted) if like else None

    def undo(self, edits: Iterable[StoredEdit], *, author: str | None = None, note: str | None = None) -> Change:
        """Take edits out: the memory is then what a rebuild without them gives. Those already out stay out."""
        change = [stored for stored in edits if stored.wanted]
        for stored in change:
            if stored.inherited:
                raise CorrigendaError(
                    f'Edit "{stored.id}" came in a matrix that an earlier version saved, which holds several edits in '
                    "one: it cannot be taken out alone; write the others anew."
                )
        return self._set("undone", change, author, note)

    def redo(self, edits: Iterable[StoredEdit], *, author: str | None = None, note: str | None = None) -> Change:
        """Put undone and unsolved edits in, each in the place of its writing."""
        change = [stored for stored in edits if not stored.wanted]
        for stored in change:
            if stored.dropped:
                raise CorrigendaError(
                    f'The tensors of edit "{stored.id}" are no longer kept: write it anew instead of redoing it.'
                )
        return self._set("redone", change, author, note)

    def _set(self, status: str, change: list[StoredEdit], author: str | None, note: str | None) -> Change:
        if not change:
            return Change([])
        asked = {stored.seq for stored in change}
        related = asked.union(*(stored.supersedes for stored in change))
        before = self.history.statuses(related)
        entry, sentence = status_entry(self.history, status, asked, author, note)
        self.append([entry])
        notes = [] if sentence is None else [sentence]
        after, replaced = self.history.statuses(related), self.history.superseded_by()
        for seq in sorted(related):
            stored = self.history.edits[seq]
            if seq not in asked and before[seq] != after[seq]:
                turned = "in again" if after[seq] == APPLIED else "superseded"
                notes.append(f'Edit "{stored.id}" of the same fact is {turned}.')
            elif seq in asked and status == "redone" and seq in replaced:
                later = self.history.edits[replaced[seq]].id
                notes.append(f'Edit "{stored.id}" stays superseded by "{later}": undo that one to have it back.')
        return Change(change, notes)


def compact(store: EditStore, forget_undone: bool = False, author: str | None = None) -> list[str]:
    """Give unused space back to the file system; returns the ids of the edits that were forgotten.

    forget_undone: drop the tensors of undone and unsolved edits, which then cannot be redone; what is written of them
    stays.
    """
    forgotten = []
    if forget_undone:
        forgotten = [stored for stored in store.history.edits.values() if not stored.wanted and not stored.dropped]
    if forgotten:
        numbers = [stored.seq for stored in forgotten]
        store.append([New("dropped", {"edits": numbers, **store.stamp(author)})], dropping=numbers)
    store.ledger.vacuum()
    return [stored.id for stored in forgotten]


def _named(new: New) -> New:
    """An entry as it is; raises where its id or its author is none that a command, a header or a log could hold."""
    try:
        if new.kind in ("edit", UNSOLVED, "declined"):
            name("id", new.body["id"])
        if new.body.get("author") is not None:
            name("author", new.body["author"])
    except FieldError as error:
        raise CorrigendaError(f"The {error.field} {error.problem}: nothing was recorded, use another.") from None
    return new


def _begin(ledger: Ledger, header: dict[str, Any], tensors: bytes) -> None:
    """The first entry of a ledger: what its edits are for."""
    stamp, _ = History().stamp()
    ledger.append([New("store", {"id": uuid.uuid4().hex, **header, **stamp}, tensors)])


def is_store(directory: str | Path) -> bool:
    """Whether a folder holds a ledger."""
    return (Path(directory) / LEDGER_NAME).exists()


def check_format(folder: Path) -> None:
    """Raise where a folder has no ledger but was saved by an earlier version."""
    if not is_store(folder) and (folder / "manifest.json").is_file():
        raise CorrigendaError(
            f"{folder} was saved by an earlier version: run `corrigenda migrate {folder}` to give it a ledger."
        )
