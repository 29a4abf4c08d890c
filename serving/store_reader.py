"""Stores read for a server: each is checked against the first one, with whose settings all must be written."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..editing.backbone.identity import another_model, tokenizer_digest
from ..editing.edits.tokenizer import Tokenizer
from ..editing.errors import CorrigendaError
from ..editing.memories.row_form import RowForm
from ..editing.methods.associative.config import row_form
from ..editing.methods.registry import text_router
from ..editing.model import saving
from ..editing.model.recorded_rule import another_rule
from ..editing.store.codec import unpacked
from ..editing.store.signing import check_signed
from ..editing.store.snapshots import Snapshot
from ..editing.store.store import EditStore
from .errors import ServingError
from .log import logger_of
from .served_edits import ReadAt, ServedEdit, served_edit, words_of
from .settings import ServingSettings
from .stores import OpenStores, active_snapshot, open_store, served_config
from .withdrawn import WithdrawnEdit, withdrawn_edits

logger = logger_of("corrigenda")


class ReadStore(NamedTuple):
    """A store's edits, as a tenant's requests would be answered by them; those that it has undone; as of when."""

    edits: list[ServedEdit]
    withdrawn: list[WithdrawnEdit]
    at: ReadAt


class StoreReader:
    """Reads stores that can be served together: of one model, one router, one template, and signed where that is asked.

    header, config, weight_sample  those of the first store
    background  tensors that new routers start from: those of the first store that has any
    """

    def __init__(self, tokenizer: Tokenizer, settings: ServingSettings) -> None:
        self._settings = settings
        first = open_store(settings.edits[0])
        try:
            self.header = first.header
            self.config = served_config(first, settings.router)
            self.weight_sample = saving.weight_sample_of(first)
        finally:
            first.close()
        found = {"tokenizer": tokenizer_digest(tokenizer)}
        if sentence := another_model(settings.edits[0], self.header["base"], found):
            raise ServingError(sentence, 422)
        unwritten = text_router(self.config, tokenizer)
        self._fits, self.fact_of = unwritten.fits, unwritten.fact_of
        self.background: dict[str, Any] | None = None
        self.open = OpenStores()
        self._lock = threading.Lock()
        self._forms: dict[Path, RowForm] = {}
        self._told: set[Path] = set()

    def forms(self) -> dict[Path, RowForm]:
        """In which form the folders that were read keep rows."""
        with self._lock:
            return dict(self._forms)

    def read(self, path: Path, tenant: str | None, snapshot: Snapshot | None, held: Iterable[ServedEdit]) -> ReadStore:
        """What a store has now, or at a snapshot: None for the one that the folder says is to be served.

        held: what is here of it; an edit that is among these and has not changed is the same object.
        """
        wanted = snapshot or active_snapshot(path)
        store = self.open.at(path, wanted)
        self._check_signed(store)
        self._check(store, path)
        # By identity: a store that was opened anew has other objects, and may have other edits by these numbers.
        known = {id(edit.stored): edit for edit in held}
        applied = [store.history.edits[seq] for seq in store.history.applied()]
        edits = [known.get(id(stored)) or served_edit(stored, path, tenant) for stored in applied]
        withdrawn = withdrawn_edits(store.history)
        fingerprints = [(edit.id, words_of(edit.fingerprint)) for edit in edits if id(edit.stored) not in known]
        for name, fingerprint in [*fingerprints, *((edit.id, edit.fingerprint) for edit in withdrawn)]:
            if not self._fits(fingerprint):
                raise ServingError(
                    f'The fingerprint of edit "{name}" in {path} is not one of this router\'s: see '
                    f"`corrigenda verify {path}`.",
                    422,
                )
        if self.background is None and store.history.ground is not None:
            ground = store.history.ground
            self.background = unpacked(store.ledger, ground.seq, ground.body["tensors"])
        return ReadStore(edits, withdrawn, ReadAt(store.snapshot, wanted is not None))

    def _check_signed(self, store: EditStore) -> None:
        """Raise unless a store may be served by the keys that are asked for: none, or one that has signed it."""
        if self._settings.signed_by is not None:
            try:
                check_signed(store, self._settings.signed_by)
            except CorrigendaError as error:
                raise ServingError(str(error), 403) from error

    def _check(self, store: EditStore, path: Path) -> None:
        """Raise unless a store's edits can be served beside those of the first one."""
        config, prompts = served_config(store, self._settings.router), store.header["prompts"]
        recorded = {**store.header["base"], "weights": saving.weight_sample_of(store)}
        if sentence := another_model(path, recorded, {**self.header["base"], "weights": self.weight_sample}):
            raise ServingError(sentence, 422)
        for name in ("layer", "beta", "threshold", "router", "encoder"):
            if getattr(config, name) != getattr(self.config, name):
                raise ServingError(
                    f"The edits in {path} have {name}={getattr(config, name)!r}, but those that are served have "
                    f"{getattr(self.config, name)!r}: write them anew with that setting.",
                    422,
                )
        if prompts != self.header["prompts"]:
            raise ServingError(f"The edits in {path} were written with another template than the others.", 422)
        sentence = another_rule(store, config)
        if sentence is not None and path not in self._told:
            self._told.add(path)  # once, and not whenever a folder is read anew
            logger.warning(sentence)
        with self._lock:
            self._forms[path] = row_form(config)
