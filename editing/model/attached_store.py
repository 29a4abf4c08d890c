"""The store that an edited model's memory is a view of: its folder, copies of it, and what others write into it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import CorrigendaError, warn_user
from ..methods.method import Method
from ..store.store import EditStore, is_store
from . import hub, saving
from .in_parts import Processes
from .versions import Versions
from .view import MemoryView


class AttachedStore:
    """Keeps a method's memory, which passes read, the view of a store, and that store where the user wants it.

    exclusively  opens a context in which nobody else reads or writes and forwards are the base model's, whose weights
                 take no gradient; its argument is whether gradients can be taken at all
    identity     the header and the sample of weights by which a store knows its model again
    """

    def __init__(
        self,
        method: Method,
        versions: Versions,
        exclusively: Callable[[bool], contextlib.AbstractContextManager[None]],
        identity: Callable[[], tuple[dict[str, object], bytes]],
    ) -> None:
        self.view = MemoryView(method)
        self._versions = versions
        self._exclusively = exclusively
        self._identity = identity
        self._processes = Processes(method.decoder.parts)
        self._directory: Path | None = None

    @property
    def store(self) -> EditStore | None:
        """The store that the memory is a view of; None before the first edit."""
        return self.view.store

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
                self.view.store = before.copy(None)
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
                self.view.store = store.copy(path)
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
            self.view.attach(store)
        self._versions.current = self.view.edits

    def refresh(self) -> bool:
        """Take in what another process has written into the store; whether there was anything."""
        self._processes.check_alone()
        with self._versions.lock:
            if self.store is None or not self.store.refresh():
                return False
            if self.view.ungrounded:
                self.attach(self.store)
            self.synchronise()
            return True

    def synchronise(self) -> None:
        """Make the memory what the store says it is."""
        with self._exclusively(False):
            self.view.become(self.view.history.applied())
        self._versions.current = self.view.edits
        self._processes.check_same(self.store)

    def new(self) -> EditStore:
        """A store for the first edits: in the folder that `write_into` named, or a temporary one."""
        identity = self._identity()

        def make() -> EditStore:
            if self._directory is None:
                return EditStore.temporary(*identity)
            return EditStore.create(self._directory, *identity)

        return self._processes.begin(make)

    def make_writable(self) -> None:
        """Loaded edits belong to their folder: without `write_into` what comes goes into a copy, which is said."""
        store = self.store
        if store is not None and not store.ledger.writable:
            self.view.store = store.copy(None)
            self._leave(store)
            notice = (
                f"Nothing is written into {store.directory}, which was only loaded: `write_into` writes there, "
                "`save_pretrained` a new folder."
            )
            self.view.store.notices.append(notice)
            warn_user(notice)

    def close(self, *, reading: bool) -> None:
        """Give the store's folder back to other writers; where `reading` goes on, what answers need is read first."""
        with self._versions.lock:
            if self.store is not None and self.store.directory is not None:
                if reading:
                    self.view.read_all()
                self.store.close()
