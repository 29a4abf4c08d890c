"""The writing side of an edited model: its store, streams of edits into it, undo and redo."""

from __future__ import annotations

import contextlib
import itertools
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backbone.check import check_decoder
from ..edits.edit import Edit, kind_of
from ..errors import CorrigendaError
from ..methods.method import Method
from ..store.history import StoredEdit
from ..store.ledger import New
from ..store.selection import Selection
from ..store.store import Change, EditStore, OnConflict, is_store
from . import hub, saving
from .answers import Progress, WrittenEdits
from .batch import BatchWriter, Outcome
from .fallback import Fallbacks
from .in_parts import Processes
from .parallel import solved_by_all
from .resume import Recorded
from .stream import Batch, named, prepared
from .versions import Versions
from .view import MemoryView

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from ..scores.evaluate import Evaluator


@dataclass(frozen=True)
class StreamOptions:
    """How a stream of edits is written: the arguments of `EditedModel.edit`, which says what they mean."""

    resume: bool = False
    on_conflict: OnConflict = "supersede"
    author: str | None = None
    keep_unsolved: bool | None = None
    on_progress: Callable[[Progress], None] | None = None
    score_each: Evaluator | None = None
    group: ProcessGroup | None = None


class EditWriter:
    """Writes edits into a store, and keeps a method's memory the view of it that passes read.

    exclusively  opens a context in which nobody else reads or writes and forwards are the base model's, whose weights
                 take no gradient; its argument is whether gradients can be taken at all
    identity     the header and the sample of weights by which a store knows its model again
    check_unchanged  raises where the model is not the one that the store's edits were written for
    """

    def __init__(
        self,
        method: Method,
        versions: Versions,
        exclusively: Callable[[bool], contextlib.AbstractContextManager[None]],
        identity: Callable[[], tuple[dict[str, object], bytes]],
        check_unchanged: Callable[[EditStore], None],
    ) -> None:
        self._method = method
        self._versions = versions
        self._exclusively = exclusively
        self._identity = identity
        self._check_unchanged = check_unchanged
        self._processes = Processes(method.decoder.parts)
        self._view = MemoryView(method)
        self._batches = BatchWriter(self._view, self._new_store)
        self._directory: Path | None = None
        self._checked = False

    @property
    def store(self) -> EditStore | None:
        """The store that the memory is a view of; None before the first edit."""
        return self._view.store

    @property
    def places(self) -> list[int]:
        """The numbers in the store of the edits in the memory, by their places there."""
        return self._view.order

    def save(self, directory: str | Path) -> None:
        """Write the edits with their history into a new or empty folder."""
        with self._versions.lock:
            store = self.store
            identity = self._identity() if store is None else None

            def save() -> None:
                copy = EditStore.create(directory, *identity) if store is None else store.copy(directory)
                with contextlib.closing(copy):
                    hub.save_card(copy, directory)

            self._processes.once(save)

    def push(self, repo_id: str, **options: Any) -> str:
        """See `EditedModel.push_to_hub`."""
        with self._versions.lock:
            if self.store is None:
                raise CorrigendaError("There are no edits to send to a hub.")
            return self._processes.once(lambda: hub.push(self.store, repo_id, **options))

    def write_into(self, directory: str | Path) -> None:
        """See `EditedModel.write_into`."""
        with self._versions.lock:
            before = self.store
            self._processes.once(lambda: self._write_into(directory))
            if self._processes.follows and before is not None and not before.ledger.writable:
                self._view.store = before.copy(None)
                self._leave(before)
            self._processes.check_same(self.store)

    def _write_into(self, directory: str | Path) -> None:
        path = Path(directory).absolute()
        with self._versions.lock:
            store = self.store
            if store is not None and store.directory is not None and store.directory.absolute() == path:
                if not store.ledger.writable:
                    self._attach(saving.read(path, write=True).store)
                    self._leave(store)
            elif is_store(path):
                raise CorrigendaError(
                    f"{directory} already holds edits: load them with from_pretrained(..., edits=...) to write on."
                )
            elif store is not None:
                self._view.store = store.copy(path)
                self._leave(store)
            else:
                saving.refuse_non_empty(path)
                self._directory = path

    def _leave(self, before: EditStore) -> None:
        """Close a store that was copied or opened anew; what readers still hold of it is read in the one that came."""
        before.history.read_from(self.store.ledger)
        before.close()

    def attach(self, store: EditStore) -> None:
        """Make the memory the view of another store."""
        self._attach(store)
        self._processes.check_same(store)

    def _attach(self, store: EditStore) -> None:
        with self._exclusively(False):
            self._view.attach(store)
        self._versions.current = self._view.edits

    def refresh(self) -> bool:
        """Take in what another process has written into the store; whether there was anything."""
        self._processes.check_alone()
        with self._versions.lock:
            if self.store is None or not self.store.refresh():
                return False
            if self._view.ungrounded:
                self.attach(self.store)
            self._synchronise()
            return True

    def _synchronise(self) -> None:
        """Make the memory what the store says it is."""
        with self._exclusively(False):
            self._view.become(self._view.history.applied())
        self._versions.current = self._view.edits
        self._processes.check_same(self.store)

    def _new_store(self) -> EditStore:
        identity = self._identity()

        def make() -> EditStore:
            if self._directory is None:
                return EditStore.temporary(*identity)
            return EditStore.create(self._directory, *identity)

        return self._processes.begin(make)

    def _make_writable(self, stacklevel: int = 4) -> None:
        """Loaded edits belong to their folder: without `write_into` what comes goes into a copy, which is said.

        stacklevel: where the caller of EditedModel's method stands.
        """
        store = self.store
        if store is not None and not store.ledger.writable:
            self._view.store = store.copy(None)
            self._leave(store)
            notice = (
                f"Nothing is written into {store.directory}, which was only loaded: `write_into` writes there, "
                "`save_pretrained` a new folder."
            )
            self._view.store.notices.append(notice)
            warnings.warn(notice, stacklevel=stacklevel)

    def write(self, stream: Iterable[Edit], options: StreamOptions) -> WrittenEdits:
        """Write edits in batches, each into the store and the memory; see `EditedModel.edit`."""
        self._check_router()
        if self.store is not None:
            self._check_unchanged(self.store)
        if not self._checked:
            if self._method.needs_gradients:
                with self._exclusively(True):
                    check_decoder(self._method.decoder, self._method.config.layer)
            self._checked = True
        recorded = Recorded(self._view.history if options.resume else None)
        # Of a list all is known before: an edit whose fact a later one is about again need not be solved.
        batches = prepared(recorded.skip(stream), isinstance(stream, Sequence), self._view, self._versions.lock)
        if options.group is None:
            return self._write(batches, recorded, options)
        known = list(batches)
        ahead = [
            [edit for edit, coming in zip(batch, later) if coming is None or options.on_conflict != "supersede"]
            for batch, later, _ in known
        ]
        with solved_by_all(self._method, options.group, ahead):
            return self._write(known, recorded, options)

    def _write(self, batches: Iterable[Batch], recorded: Recorded, options: StreamOptions) -> WrittenEdits:
        results = WrittenEdits()
        on_progress, score_each = options.on_progress, options.score_each
        keep = self._method.keeps_unsolved if options.keep_unsolved is None else options.keep_unsolved
        seconds, told = 0.0, 0
        fallbacks = Fallbacks(self._batches, recorded, options.on_conflict, options.author)
        for batch, later, sentences in batches:
            start = time.perf_counter()
            with self._exclusively(True):
                self._make_writable(stacklevel=5)
                batch, taken = named(batch, self._view)  # again: another thread may have written meanwhile
                owed = fallbacks.owed()
                known = fallbacks.later(later)
                own = self._batches.write(
                    batch, known, on_conflict=options.on_conflict, author=options.author, keep_unsolved=keep
                )
                self.store.notices += sentences + taken
                outcome = owed.and_then(fallbacks.after(batch, known, own))
                if len(outcome.edits) > len(own.edits):  # some that were declined before have come in another's place
                    results.declined[:] = [one for one in results.declined if one.edit not in outcome.edits]
                self._versions.current = self._view.edits
                self._processes.check_same(self.store)
            _add(results, outcome)
            recorded.passed += len(batch)
            seconds += time.perf_counter() - start
            if on_progress is not None:
                told = recorded.passed
                parts = (outcome.edits, outcome.written, told, outcome.declined, outcome.unsolved, outcome.failing)
                on_progress(Progress(len(results), seconds, *parts))
            if score_each is not None and outcome.edits:
                score_each.score_batch(outcome.edits)
                self._record_scores(outcome.edits, score_each.by_edit)
        if recorded.owed:
            with self._exclusively(True):
                self._make_writable(stacklevel=5)
                outcome = fallbacks.owed()
                self._versions.current = self._view.edits
                self._processes.check_same(self.store)
            _add(results, outcome)
        if on_progress is not None and recorded.passed > told:  # the last ones were recorded before
            on_progress(Progress(len(results), seconds, (), (), recorded.passed))
        return results

    def _check_router(self) -> None:
        """Raise where the edits are found by another router than the one that their store is for."""
        stored = None if self.store is None else self.store.header["config"].get("router")
        own = getattr(self._method.config, "router", None)
        if stored is not None and stored != own:
            raise CorrigendaError(
                f'Edits for the router "{stored}" that are found by "{own}" are read, and no new ones written beside '
                f"them: load them without `router`, or run `corrigenda migrate --router {own}` on their folder."
            )

    def _record_scores(self, edits: Sequence[Edit], scores: Sequence[dict[str, float]]) -> None:
        with self._versions.lock:
            found = {str(self._view.history.find(edit.id).seq): of_edit for edit, of_edit in zip(edits, scores)}
            self.store.append([New("scores", {"scores": found, **self.store.stamp()})])

    def undo(
        self, selection: Selection, author: str | None = None, note: str | None = None, resolve: bool = False
    ) -> Change:
        """Take the selected edits out of the memory, and record it; see `EditedModel.undo`."""
        with self._versions.lock:
            self._make_writable()
            edits = self._selected(selection, "undo")
            if resolve:
                return self._resolved([stored for stored in edits if stored.wanted], author, note)
            return self._after(self.store.undo(edits, author=author, note=note))

    def _resolved(self, undone: list[StoredEdit], author: str | None, note: str | None) -> Change:
        """Undo edits, and write those of their batches and after them again; all of it, or nothing."""
        history, out = self.store.history, {stored.seq for stored in undone}
        first = min((stored.batch for stored in undone), default=self.store.ledger.count + 1)
        inside = [history.edits[seq] for seq in self.places if seq not in out]
        again = [stored for stored in inside if stored.batch >= first]
        note = f"{note + ': ' if note else ''}re-solved, what was solved beside or after it was solved anew"
        change = self._after(self.store.undo([*undone, *again], author=author, note=note))
        before = self.store.ledger.count
        try:
            for _, batch in itertools.groupby(again, key=lambda stored: stored.batch):
                self.write([stored.edit for stored in batch], StreamOptions(author=author, keep_unsolved=True))
        except BaseException:
            new = [stored for seq, stored in self.store.history.edits.items() if seq > before]
            self.store.undo(new, author=author, note="could not be solved anew")
            self._after(self.store.redo([*undone, *again], author=author, note="could not be solved anew"))
            raise
        solved = f"{len(again)} edit{'' if len(again) == 1 else 's'} beside it or after it solved anew."
        return replace(change, edits=undone, notes=[*change.notes, solved])

    def redo(self, selection: Selection, author: str | None = None) -> Change:
        """Put the selected edits in again, each in its old place, and record it."""
        with self._versions.lock:
            self._make_writable()
            edits = self._selected(selection, "redo")
            return self._after(self.store.redo(edits, author=author))

    def _selected(self, selection: Selection, what: str) -> list[StoredEdit]:
        if self.store is None:
            raise CorrigendaError(f"There are no edits to {what}.")
        return self.store.selected(selection, wanted=what == "undo")

    def _after(self, change: Change) -> Change:
        self._synchronise()
        return change

    def reserve(self, edits: int, rows: int, prompt_tokens: int) -> None:
        """Make room for edits; see `EditedModel.reserve`."""
        with self._exclusively(False):
            self._method.reserve(edits, rows, prompt_tokens)

    def close(self, *, reading: bool) -> None:
        """Give the store's folder back to other writers; where `reading` goes on, what answers need is read first."""
        with self._versions.lock:
            if self.store is not None and self.store.directory is not None:
                if reading:
                    self._view.read_all()
                self.store.close()


def names_of(what: str, ids: str | Iterable[str]) -> tuple[str, ...]:
    """The ids that `what` was given: one, or several."""
    names = (ids,) if isinstance(ids, str) or not isinstance(ids, Iterable) else tuple(ids)
    for name in names:
        if not isinstance(name, str):
            raise CorrigendaError(f"{what} takes ids of edits, which are text, not {kind_of(name)}.")
    return names


def _add(results: WrittenEdits, outcome: Outcome) -> None:
    results += outcome.written
    results.unsolved += outcome.unsolved
    results.failing += outcome.failing
    results.declined += outcome.declined
