"""Readers beside a writer: one forward at a time, and versions of the memory that a reader can hold on to."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..store.placed import PlacedEdits

if TYPE_CHECKING:
    from ..memories.memory import Memory
    from ..methods.method import Method
    from ..routers.router import EditRouter
    from .layer import EditedOutput


class Version(NamedTuple):
    """The edits at one moment: what a reader's passes use while it holds on to it."""

    edits: PlacedEdits
    memory: Memory
    router: EditRouter


class Versions:
    """The memory that the layers read now, and views of it that were pinned.

    A batch is written, and a call of a reader made, under one lock: a reader sees a whole batch or nothing of it. A
    pinned version shares the banks with the memory; later writes go to rows and pages that it does not know of.
    """

    def __init__(self, method: Method, layers: Sequence[EditedOutput]) -> None:
        self.lock = threading.RLock()
        self.current = PlacedEdits()
        self._method = method
        self._layers = layers
        self._pinned = threading.local()

    @property
    def edits(self) -> PlacedEdits:
        """The edits that passes of this thread answer by."""
        version = getattr(self._pinned, "version", None)
        return self.current if version is None else version.edits

    @contextlib.contextmanager
    def pin(self) -> Iterator[Version]:
        """Within, on this thread: every pass answers by the edits as they are at the start."""
        before = getattr(self._pinned, "version", None)
        with self.lock:
            version = before or Version(self.current, self._method.memory.view(), self._method.router.view())
        self._pinned.version = version
        try:
            yield version
        finally:
            self._pinned.version = before

    @contextlib.contextmanager
    def reading(self) -> Iterator[PlacedEdits]:
        """Within: no batch is written, and this thread's version is the one in use. Yields its edits, by place."""
        with self.lock:
            version = getattr(self._pinned, "version", None)
            if version is None:
                yield self.current
                return
            memory, router = self._method.memory, self._method.router
            self._use(version.memory, version.router)
            try:
                yield version.edits
            finally:
                self._use(memory, router)

    def _use(self, memory: Memory, router: EditRouter) -> None:
        self._method.memory, self._method.router = memory, router
        for layer in self._layers:
            layer.memory = memory
