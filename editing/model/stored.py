"""The writing side of an edited model: its store, streams of edits into it, undo and redo."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backbone.check import check_decoder
from ..backbone.decoder import Decoder
from ..backbone.modes import frozen, own_modes
from ..backbone.patch import Patch
from ..edits.edit import Edit, kind_of
from ..errors import CorrigendaError
from ..methods.method import Method
from ..store.history import StoredEdit
from ..store.ledger import New
from ..store.selection import Selection
from ..store.store import Change, EditStore, OnConflict, is_store
from . import saving
from .answers import Progress, WrittenEdits
from .layer import EditedOutput
from .resume import Recorded
from .stream import named, superseded
from .versions import Version, Versions
from .view import MemoryView

if TYPE_CHECKING:
    from ..edits.prompts import PromptFormat
    from ..methods.config import EditingConfig
    from ..scores.evaluate import Evaluator
    from .generation import GenerateProvider


class StoredEdits:
    """Edits in a store, and the method's memory as a view of them; `EditedModel` adds the answering."""

    model: Any
    tokenizer: Any
    name: str | None
    prompts: PromptFormat
    decoder: Decoder
    config: EditingConfig
    method: Method
    _provider: GenerateProvider
    _patch: Patch

    def _begin(self, output: EditedOutput) -> None:
        """Start with no edits, in a memory that `output` reads."""
        self._versions = Versions(self.method, output)
        self._view = MemoryView(self.method, self._new_store)
        self.method.applied = lambda: self._versions.edits
        self._directory: Path | None = None
        self._checked = False

    @property
    def edits(self) -> list[Edit]:
        """The edits that are in the memory, by their places; in a pinned version, those of that version."""
        return self._versions.edits

    @property
    def store(self) -> EditStore | None:
        """The store that the memory is a view of; None before the first edit."""
        return self._view.store

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the edits with their history (not the base model) into a new or empty folder: one SQLite ledger."""
        with self._versions.lock:
            if self.store is None:
                EditStore.create(directory, saving.header_of(self), saving.sample_of(self)).close()
            else:
                self.store.copy(directory).close()

    def write_into(self, directory: str | Path) -> None:
        """From now on, write edits into this folder's store as they come; a batch is on the disk when it is written.

        A new or empty folder takes the edits that are there; the folder these edits were loaded from is written on.
        """
        path = Path(directory).absolute()
        with self._versions.lock:
            store = self.store
            if store is not None and store.directory is not None and store.directory.absolute() == path:
                if not store.ledger.writable:
                    self._attach(saving.read(path, write=True).store)
                    store.close()
            elif is_store(path):
                raise CorrigendaError(
                    f"{directory} already holds edits: load them with from_pretrained(..., edits=...) to write on."
                )
            elif store is not None:
                self._view.store = store.copy(path)
                store.close()
            else:
                saving.refuse_non_empty(path)
                self._directory = path

    def attach(self, directory: str | Path) -> None:
        """The name of `write_into` before version 0.2."""
        warnings.warn("`attach` is called `write_into` now.", FutureWarning, stacklevel=2)
        self.write_into(directory)

    def refresh(self) -> bool:
        """Take in what another process has written into the store; whether there was anything."""
        with self._versions.lock:
            if self.store is None or not self.store.refresh():
                return False
            if self._view.ungrounded:
                self._attach(self.store)
            self._synchronise()
            return True

    def _check_attached(self) -> None:
        """Raise where `detach` took the patch off."""
        if getattr(self.decoder.model, "_corrigenda", None) is not self:
            raise CorrigendaError("The edits are detached from their model: load or wrap it again.")

    def _check_read(self) -> None:
        """Raise where no layer reads the edits: they are detached, or the layer is another module by now."""
        self._check_attached()
        if not self._patch.hooks(self.decoder.down_proj(self.config.layer)):
            raise CorrigendaError(
                f"The down_proj of layer {self.config.layer} was exchanged for another module, which reads no edits: "
                "detach the edits and load them again."
            )

    def _attach(self, store: EditStore) -> None:
        with self._writing(gradients=False):
            self._view.attach(store)
        self._versions.current = list(self._view.edits)

    def _synchronise(self) -> None:
        """Make the memory what the store says it is."""
        with self._writing(gradients=False):
            self._view.become(self._view.history.applied())
        self._versions.current = list(self._view.edits)

    def _new_store(self) -> EditStore:
        header, sample = saving.header_of(self), saving.sample_of(self)
        if self._directory is None:
            return EditStore.temporary(header, sample)
        return EditStore.create(self._directory, header, sample)

    def _writable(self) -> None:
        """Loaded edits belong to their folder: without `write_into` what comes goes into a copy, which is said."""
        store = self.store
        if store is not None and not store.ledger.writable:
            self._view.store = store.copy(None)
            store.close()
            notice = (
                f"Nothing is written into {store.directory}, which was only loaded: `write_into` writes there, "
                "`save_pretrained` a new folder."
            )
            self._view.store.notices.append(notice)
            warnings.warn(notice, stacklevel=3)

    def edit(
        self,
        edits: Edit | Iterable[Edit],
        *,
        store: str | Path | None = None,
        resume: bool = False,
        on_conflict: OnConflict = "supersede",
        author: str | None = None,
        keep_unsolved: bool | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        score_each: Evaluator | None = None,
    ) -> WrittenEdits:
        """Write edits in batches of `config.batch_size`, in order; each batch is answered by from then on.

        store: a folder to write them into as they come (see `write_into`). resume: skip edits of the stream that are
        recorded there already. on_conflict: what to do where a stored edit is about the same fact, "supersede" it or
        "keep" it; or a function of both edits that says which. The result's `declined` has what was left out so, and of
        a list those edits whose prompt a later one has again. An id that is another edit's gets a number ("66#2").
        keep_unsolved: whether an edit that does not hold (`Written.held`) is in the memory all the same; if not, it is
        recorded as unsolved (the result's `unsolved`). By default the method's: associative leaves it out, the others,
        whose published algorithms write every edit, do not.
        score_each: an evaluator that scores every batch right after it was written. An edit that cannot be taken stops
        the stream with its batch not written; what was written before stays.
        """
        self._check_read()
        stream: Iterable[Edit] = [edits] if isinstance(edits, Edit) else edits
        if store is not None:
            self.write_into(store)
        if not self._checked:
            with self._writing():
                check_decoder(self.decoder, self.config.layer)
            self._checked = True
        recorded = Recorded(self._view.history if resume else None)
        results = WrittenEdits()
        keep = self.method.keeps_unsolved if keep_unsolved is None else keep_unsolved
        seconds, told = 0.0, 0
        # Of a list all is known before: an edit whose fact a later one is about again need not be solved.
        for batch, later, sentences in self._prepared(recorded.skip(stream), isinstance(stream, Sequence)):
            start = time.perf_counter()
            with self._writing():
                self._writable()
                batch, taken = named(batch, self._view)  # again: another thread may have written meanwhile
                known = later if on_conflict == "supersede" else [None] * len(batch)
                outcome = self._view.write(batch, known, on_conflict=on_conflict, author=author, keep_unsolved=keep)
                self.store.notices += sentences + taken
                self._versions.current = list(self._view.edits)
            results += outcome.written
            results.unsolved += outcome.unsolved
            results.failing += outcome.failing
            results.declined += outcome.declined
            recorded.passed += len(batch)
            seconds += time.perf_counter() - start
            if on_progress is not None:
                told = recorded.passed
                parts = (outcome.edits, outcome.written, told, outcome.declined, outcome.unsolved, outcome.failing)
                on_progress(Progress(len(results), seconds, *parts))
            if score_each is not None and outcome.edits:
                score_each.score_batch(outcome.edits)
                self._record_scores(outcome.edits, score_each.by_edit)
        if on_progress is not None and recorded.passed > told:  # the last ones were recorded before
            on_progress(Progress(len(results), seconds, (), (), recorded.passed))
        return results

    def _record_scores(self, edits: Sequence[Edit], scores: Sequence[dict[str, float]]) -> None:
        with self._versions.lock:
            found = {str(self._view.history.find(edit.id).seq): of_edit for edit, of_edit in zip(edits, scores)}
            self.store.append([New("scores", {"scores": found, **self.store.stamp()})])

    @contextlib.contextmanager
    def _writing(self, gradients: bool = True) -> Iterator[None]:
        """Within: nobody else reads or writes, and forwards are the base model's, whose weights take no gradient."""
        with (
            self._versions.lock,
            own_modes(self.model, gradients=gradients),
            frozen(self.model),
            self._provider.aside(),
        ):
            yield

    def _prepared(
        self, stream: Iterable[Edit], whole: bool
    ) -> Iterator[tuple[list[Edit], list[str | None], list[str]]]:
        """Batches with ids, the ids of later edits of the same prompts, and sentences; `whole`: take all in at once."""
        size = self.config.batch_size
        for part in [list(_checked(stream))] if whole else _batches(stream, size):
            with self._versions.lock:
                edits, sentences = named(part, self._view)
            later = superseded(edits)
            for start in range(0, len(edits), size):
                yield edits[start : start + size], later[start : start + size], sentences
                sentences = []

    def remove(self, ids: str | Iterable[str]) -> None:
        """Take edits out by their ids: what they answered is the base model's again, all else keeps its bits.

        It is `undo`, but an id that is not in the memory is an error.
        """
        wanted = set(_names("remove", ids))
        present = {edit.id for edit in self._versions.current}
        for name in sorted(wanted):
            if name not in present:
                raise CorrigendaError(f'There is no edit with the id "{name}" to remove.')
        self.undo(wanted)

    def undo(
        self,
        ids: str | Iterable[str] = (),
        *,
        by: str | None = None,
        since: str | None = None,
        until: str | None = None,
        author: str | None = None,
    ) -> Change:
        """Take edits out: by their ids, or `by` an author, or written `since` or `until` a time (ISO 8601).

        The memory is then, bit for bit, what a rebuild without them gives, and no older edit answers their questions
        instead (`Withdrawn`). It is not unlearning: the base model never held them, and the ledger keeps them.
        """
        with self._versions.lock:
            edits = self._selected(Selection(_names("undo", ids), by, since, until), undo=True)
            return self._after(self.store.undo(edits, author=author))

    def redo(
        self,
        ids: str | Iterable[str] = (),
        *,
        by: str | None = None,
        since: str | None = None,
        until: str | None = None,
        author: str | None = None,
    ) -> Change:
        """Put undone edits in again, each in its old place; chosen as by `undo`."""
        with self._versions.lock:
            edits = self._selected(Selection(_names("redo", ids), by, since, until), undo=False)
            return self._after(self.store.redo(edits, author=author))

    def _selected(self, selection: Selection, *, undo: bool) -> list[StoredEdit]:
        if self.store is None:
            raise CorrigendaError(f"There are no edits to {'undo' if undo else 'redo'}.")
        self._writable()
        return self.store.selected(selection, wanted=undo)

    def _after(self, change: Change) -> Change:
        self._synchronise()
        return change

    def pin(self) -> contextlib.AbstractContextManager[Version]:
        """Within, on this thread: answers by the edits as they are now, whatever others write meanwhile."""
        return self._versions.pin()

    def reserve(self, edits: int, rows: int = 8, prompt_tokens: int = 64) -> None:
        """Make room for this many edits of `rows` answer positions: their buffers then keep their addresses.

        prompt_tokens: how many distinct tokens their prompts have.
        """
        with self._writing(gradients=False):
            self.method.reserve(edits, rows, prompt_tokens)

    def close(self) -> None:
        """Give the store's folder back to other writers; answering goes on, editing does not."""
        with self._versions.lock:
            if self.store is not None and self.store.directory is not None:
                self.store.close()


def _names(what: str, ids: str | Iterable[str]) -> tuple[str, ...]:
    """The ids that `what` was given: one, or several."""
    names = (ids,) if isinstance(ids, str) or not isinstance(ids, Iterable) else tuple(ids)
    for name in names:
        if not isinstance(name, str):
            raise CorrigendaError(f"{what} takes ids of edits, which are text, not {kind_of(name)}.")
    return names


def _checked(edits: Iterable[Edit]) -> Iterator[Edit]:
    for edit in edits:
        if not isinstance(edit, Edit):
            raise CorrigendaError(f"edit takes Edit objects, not {kind_of(edit)}: `load_edits` makes them of records.")
        yield edit


def _batches(edits: Iterable[Edit], size: int) -> Iterator[list[Edit]]:
    batch: list[Edit] = []
    for edit in _checked(edits):
        batch.append(edit)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
