"""Editing a model that is answering: a thread that writes what it is handed, in order, while others read."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..edits.edit import Edit
from ..errors import CorrigendaError

if TYPE_CHECKING:
    from .edited_model import EditedModel


class LiveEditor:
    """A writer thread over an edited model.

    `submit`, `undo` and `redo` return at once with a future, done when the change is on the disk (where the model has a
    store) and answered by. Readers may call the model's `answer`, `generate` and `evaluate` from other threads
    meanwhile: each call sees whole batches, and `with model.pin():` one version for as many calls as it holds.
    """

    def __init__(self, edited: EditedModel) -> None:
        self._edited = edited
        self._jobs: queue.SimpleQueue[tuple[Future, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="corrigenda-writer", daemon=True)
        self._thread.start()

    def submit(self, edits: Edit | Iterable[Edit], **options: Any) -> Future:
        """Write edits; `options` are those of `EditedModel.edit`. The future holds what that returns."""
        stream = [edits] if isinstance(edits, Edit) else list(edits)
        return self._queue(lambda: self._edited.edit(stream, **options))

    def undo(self, ids: str | Iterable[str] = (), **options: Any) -> Future:
        """As `EditedModel.undo`."""
        return self._queue(lambda: self._edited.undo(ids, **options))

    def redo(self, ids: str | Iterable[str] = (), **options: Any) -> Future:
        """As `EditedModel.redo`."""
        return self._queue(lambda: self._edited.redo(ids, **options))

    def close(self) -> None:
        """Finish what was handed in, and end the thread."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
            self._thread.join()

    def __enter__(self) -> LiveEditor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _queue(self, job: Callable[[], Any]) -> Future:
        if self._closed:
            raise CorrigendaError("This editor is closed: make a new one to write on.")
        future: Future = Future()
        self._jobs.put((future, job))
        return future

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            future, job = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)
