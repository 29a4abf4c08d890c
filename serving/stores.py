"""Stores as a server reads them: those that it can serve, kept open."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path

from ..editing.errors import CorrigendaError
from ..editing.methods.associative.config import AssociativeConfig
from ..editing.methods.coachhook.config import CoachHookConfig
from ..editing.methods.config import EditingConfig
from ..editing.methods.sense.config import TokenVectorsConfig
from ..editing.methods.weights.config import WeightsConfig
from ..editing.model.saving import opened_by
from ..editing.store.files import LEDGER_NAME
from ..editing.store.folder import Folder
from ..editing.store.snapshots import Snapshot, read_active
from ..editing.store.store import EditStore, check_format
from .errors import ServingError
from .pinned import opened
from .settings import ServingSettings


class OpenStores:
    """Stores that are kept open, so that reading one anew costs what was written to it since."""

    def __init__(self) -> None:
        self._held: dict[tuple[Path, Snapshot | None], tuple[EditStore, tuple[int, int]]] = {}

    def keep(self, used: Collection[tuple[Path, Snapshot | None]]) -> None:
        """Let go of all but these."""
        for key in [key for key in self._held if key not in used]:
            self._held.pop(key)[0].close()

    def at(self, path: Path, snapshot: Snapshot | None = None) -> EditStore:
        """The store in a folder, as it is now or was at a snapshot."""
        key = path, snapshot
        if key in self._held:
            store, file = self._held.pop(key)
            with contextlib.suppress(CorrigendaError, OSError):
                if path == path.resolve() and file == _file(path):  # else another folder has come in this one's place
                    store.refresh()
                    self._held[key] = store, file
                    return store
            store.close()
        store = open_store(path, snapshot)
        self._held[key] = store, _file(path)
        return store


def _file(path: Path) -> tuple[int, int]:
    found = (path / LEDGER_NAME).stat()
    return found.st_dev, found.st_ino


def open_store(path: Path, snapshot: Snapshot | None = None) -> EditStore:
    """The store in a folder; one that an earlier version saved is refused, for workers read entries by number."""
    try:
        check_format(path)
        return opened(path, snapshot=snapshot)
    except ServingError:
        raise
    except CorrigendaError as error:
        raise ServingError(str(error), 422) from error


def active_snapshot(path: Path) -> Snapshot | None:
    """The snapshot that a folder says is to be served (`corrigenda rollout`)."""
    try:
        with Folder(path) as folder:
            return read_active(folder)
    except CorrigendaError as error:
        raise ServingError(str(error), 422) from error


def served_config(store: EditStore, router: str | None = None) -> AssociativeConfig:
    """The configuration of a store's edits, if they can be routed when a request is admitted.

    router: as in `ServingSettings`.
    """
    try:
        config = opened_by(EditingConfig.from_dict(store.header["config"]), router)
    except CorrigendaError as error:
        raise ServingError(str(error), 422) from error
    if isinstance(config, TokenVectorsConfig):
        raise ServingError(
            f"The edits in {store.ledger.name} ({config.method}) are vectors of tokens, and servers hold rows of key "
            "and value alone: serve edits of the method associative.",
            422,
        )
    if isinstance(config, WeightsConfig) and not isinstance(config, CoachHookConfig):
        instead = 'of router="none" ' if config.routed_by_text else ""
        raise ServingError(
            f"The edits in {store.ledger.name} ({config.method}) change weights, and servers hold rows of key and "
            f"value alone: serve the model folder that `corrigenda bake` writes of edits {instead}as any model.",
            422,
        )
    if config.routed_by_text and not isinstance(config, AssociativeConfig):
        raise ServingError(
            f"The edits in {store.ledger.name} ({config.method}) are put before a question as text, and servers hold "
            "rows of key and value alone: serve edits of the method associative.",
            422,
        )
    # Rows of key and value are what a server holds.
    if not (isinstance(config, AssociativeConfig) and config.routed_by_text):
        raise ServingError(
            f'The edits in {store.ledger.name} ({config.method}, scope="{config.scope}") are found by features of the '
            "whole prompt, which chunked prefill and prefix sharing hide from a server: serve edits of the method "
            'associative (scope="causal", router="tokens" or "meaning").',
            422,
        )
    return config


def check_served(settings: ServingSettings) -> None:
    """Raise where a folder that a server is to start with cannot be served: before a model is loaded for it."""
    for folder in settings.folders:
        store = open_store(folder, active_snapshot(folder))
        try:
            served_config(store, settings.router)
        finally:
            store.close()


def write_status(path: Path, what: str, name: str, author: str | None) -> None:
    """Undo or redo an edit in a folder's ledger: `what` says which."""
    try:
        writing = opened(path, write=True)
    except ServingError:
        raise
    except CorrigendaError as error:
        raise ServingError(str(error), 409) from error
    try:
        edits = writing.selected([name], wanted=what == "undo")
        (writing.undo if what == "undo" else writing.redo)(edits, author=author)
    finally:
        writing.close()
