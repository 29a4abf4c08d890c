"""The writing side of an edited model: streams of edits into its store, undo and redo."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..backbone.check import check_decoder
from ..edits.edit import Edit, kind_of
from ..errors import CorrigendaError
from ..methods.method import Method
from ..store.history import StoredEdit
from ..store.ledger import New
from ..store.selection import Selection
from ..store.store import Change, EditStore, OnConflict
from .answers import Progress, WrittenEdits
from .attached_store import AttachedStore
from .batch import BatchWriter, Outcome
from .fallback import Fallbacks
from .in_parts import Processes
from .parallel import solved_by_all
from .resume import Recorded
from .stream import Batch, named, prepared
from .versions import Versions

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
    """Writes edits into the store that is attached, and has the memory follow.

    exclusively  as in `AttachedStore`
    check_unchanged  raises where the model is not the one that the store's edits were written for
    """

    def __init__(
        self,
        method: Method,
        versions: Versions,
        attached: AttachedStore,
        exclusively: Callable[[bool], contextlib.AbstractContextManager[None]],
        check_unchanged: Callable[[EditStore], None],
    ) -> None:
        self._method = method
        self._versions = versions
        self._attached = attached
        self._exclusively = exclusively
        self._check_unchanged = check_unchanged
        self._processes = Processes(method.decoder.parts)
        self._view = attached.view
        self._batches = BatchWriter(self._view, attached.new)
        self._checked = False

    @property
    def places(self) -> list[int]:
        """The numbers in the store of the edits in the memory, by their places there."""
        return self._view.order

    def write(self, stream: Iterable[Edit], options: StreamOptions) -> WrittenEdits:
        """Write edits in batches, each into the store and the memory; see `EditedModel.edit`."""
        self._check_router()
        if self._view.store is not None:
            self._check_unchanged(self._view.store)
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
                self._attached.make_writable()
                batch, taken = named(batch, self._view)  # again: another thread may have written meanwhile
                owed = fallbacks.owed()
                known = fallbacks.later(later)
                own = self._batches.write(
                    batch, known, on_conflict=options.on_conflict, author=options.author, keep_unsolved=keep
                )
                self._view.store.notices += sentences + taken
                outcome = owed.and_then(fallbacks.after(batch, known, own))
                if len(outcome.edits) > len(own.edits):  # some that were declined before have come in another's place
                    results.declined[:] = [one for one in results.declined if one.edit not in outcome.edits]
                self._versions.current = self._view.edits
                self._processes.check_same(self._view.store)
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
                self._attached.make_writable()
                outcome = fallbacks.owed()
                self._versions.current = self._view.edits
                self._processes.check_same(self._view.store)
            _add(results, outcome)
        if on_progress is not None and recorded.passed > told:  # the last ones were recorded before
            on_progress(Progress(len(results), seconds, (), (), recorded.passed))
        return results

    def _check_router(self) -> None:
        """Raise where the edits are found by another router than the one that their store is for."""
        stored = None if self._view.store is None else self._view.store.header["config"].get("router")
        own = getattr(self._method.config, "router", None)
        if stored is not None and stored != own:
            raise CorrigendaError(
                f'Edits for the router "{stored}" that are found by "{own}" are read, and no new ones written beside '
                f"them: load them without `router`, or run `corrigenda migrate --router {own}` on their folder."
            )

    def _record_scores(self, edits: Sequence[Edit], scores: Sequence[dict[str, float]]) -> None:
        with self._versions.lock:
            found = {str(self._view.history.find(edit.id).seq): of_edit for edit, of_edit in zip(edits, scores)}
            self._view.store.append([New("scores", {"scores": found, **self._view.store.stamp()})])

    def undo(
        self, selection: Selection, author: str | None = None, note: str | None = None, resolve: bool = False
    ) -> Change:
        """Take the selected edits out of the memory, and record it; see `EditedModel.undo`."""
        with self._versions.lock:
            self._attached.make_writable()
            edits = self._selected(selection, "undo")
            if resolve:
                return self._resolved([stored for stored in edits if stored.wanted], author, note)
            return self._after(self._view.store.undo(edits, author=author, note=note))

    def _resolved(self, undone: list[StoredEdit], author: str | None, note: str | None) -> Change:
        """Undo edits, and write those of their batches and after them again; all of it, or nothing."""
        history, out = self._view.store.history, {stored.seq for stored in undone}
        first = min((stored.batch for stored in undone), default=self._view.store.ledger.count + 1)
        inside = [history.edits[seq] for seq in self.places if seq not in out]
        again = [stored for stored in inside if stored.batch >= first]
        note = f"{note + ': ' if note else ''}re-solved, what was solved beside or after it was solved anew"
        change = self._after(self._view.store.undo([*undone, *again], author=author, note=note))
        before = self._view.store.ledger.count
        try:
            for _, batch in itertools.groupby(again, key=lambda stored: stored.batch):
                self.write([stored.edit for stored in batch], StreamOptions(author=author, keep_unsolved=True))
        except BaseException:
            new = [stored for seq, stored in self._view.store.history.edits.items() if seq > before]
            self._view.store.undo(new, author=author, note="could not be solved anew")
            self._after(self._view.store.redo([*undone, *again], author=author, note="could not be solved anew"))
            raise
        solved = f"{len(again)} edit{'' if len(again) == 1 else 's'} beside it or after it solved anew."
        return replace(change, edits=undone, notes=[*change.notes, solved])

    def redo(self, selection: Selection, author: str | None = None) -> Change:
        """Put the selected edits in again, each in its old place, and record it."""
        with self._versions.lock:
            self._attached.make_writable()
            edits = self._selected(selection, "redo")
            return self._after(self._view.store.redo(edits, author=author))

    def _selected(self, selection: Selection, what: str) -> list[StoredEdit]:
        if self._view.store is None:
            raise CorrigendaError(f"There are no edits to {what}.")
        return self._view.store.selected(selection, wanted=what == "undo")

    def _after(self, change: Change) -> Change:
        self._attached.synchronise()
        return change

    def reserve(self, edits: int, rows: int, prompt_tokens: int) -> None:
        """Make room for edits; see `EditedModel.reserve`."""
        with self._exclusively(False):
            self._method.reserve(edits, rows, prompt_tokens)


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
