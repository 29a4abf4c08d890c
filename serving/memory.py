"""The memory that a server reads: the rows of many stores' edits, each at its place while anyone may ask it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from ..editing.errors import CorrigendaError
from ..editing.memories.mixed_banks import MixedBanks
from ..editing.memories.paged_banks import PagingCounts
from ..editing.memories.row_form import RowForm, Rows
from ..editing.methods.associative.config import AssociativeConfig, row_form
from ..editing.methods.associative.method import Associative
from ..editing.methods.config import EditingConfig
from ..editing.profiling import scope
from ..editing.store.codec import record_of, unpacked
from ..editing.store.ledger import Ledger
from ..editing.store.stored import StoredEdit
from .errors import ServingError

_LONGEST = 512
"""Rows that any server takes of an edit: what the default `max_target_tokens` comes to, rounded up.

The table of pages is as wide as the longest edit: one of a million rows would be paid for by every other. A store may
have been written with a larger setting, which is not for it to say here: the server's own `rows` allows more.
"""


def edit_key(stored: StoredEdit) -> str:
    """What an edit is known by in a server: a digest of all that the ledger says of it, its tensors' included."""
    return _key(stored.body)


def _key(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:24]


class FormedRows(NamedTuple):
    """Rows of an edit, and the form that its folder keeps them in."""

    form: RowForm
    rows: Rows


class ServedMemory:
    """Rows by `edit_key`. Versions of the edits differ in what their routers know; the rows of all of them are here.

    An edit never changes once it is written, so a version is made by adding rows, and an edit that was undone keeps
    its rows until no request in flight is answered by it. `banks` is what the layer reads: each folder's rows stay in
    the form that it keeps them in. Of `config`, which is the first folder's, `beta` is that of them all.
    """

    def __init__(
        self,
        config: AssociativeConfig,
        widths: tuple[int, int],
        device: torch.device,
        dtype: torch.dtype,
        rows: int = 8,
    ) -> None:
        self.config = config
        self.rows = rows
        self.longest = max(_LONGEST, rows)
        self.widths = widths
        self.banks = MixedBanks(*widths, config.beta, device, dtype)
        self.banks.of(row_form(config))
        self.counts = PagingCounts()
        """How often an edit's rows were where the layer reads, or had to be put there first, since the start."""
        self._grounded = False
        self._place: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._place)

    def reserve(self, edits: int, forms: Iterable[RowForm] = ()) -> None:
        """Room for this many edits of `rows` rows, of the first folder's form and of each of these.

        Where passes may be captured in CUDA graphs there is no other, and no other form is taken.
        """
        for form in (*self.banks.forms(), *forms):
            self._make_room(form, edits)
        if self.banks.background.device.type != "cpu":
            self.banks.fix()

    def _make_room(self, form: RowForm, edits: int) -> None:
        self.banks.of(form).reserve(edits, self.rows, self.longest)

    def place(self, key: str | None) -> int:
        """Where an edit's rows are; -1 for no edit, and for one whose rows are not here."""
        return -1 if key is None else self._place.get(key, -1)

    def knows(self, key: str) -> bool:
        """Whether an edit may be asked."""
        return self.place(key) >= 0

    def rows_of(self, key: str) -> Rows | None:
        """What a request in flight must hold itself of its edit: nothing, where every edit's rows are in place."""
        return None

    def bring(self, key: str, rows: Rows, kept: Container[str | None]) -> int:
        """Where the layer reads an edit that a request asks, by its `rows_of`; those `kept` make no room for it."""
        return self.place(key)

    def load(self, directory: str | Path, edits: Mapping[str, int]) -> int:
        """Take in edits of a store, keys with their numbers in its ledger. All or none; how many were new."""
        return self.put(self.read(directory, edits))

    def read(self, directory: str | Path, edits: Mapping[str, int]) -> dict[str, FormedRows]:
        """What `load` reads of the disk: the rows of those that are new, while passes may run.

        Only their entries of the ledger are read, for a ledger of ten thousand takes a second, and a server waits.
        """
        new = {key: seq for key, seq in edits.items() if key not in self._place}
        if not new and self._grounded:
            return {}
        ledger = Ledger.open(directory)
        try:
            self._take_ground(ledger)
            config = self._config_of(ledger)
            form = row_form(config)
            return {key: FormedRows(form, self._record(ledger, config, key, seq)) for key, seq in new.items()}
        finally:
            ledger.close()

    def put(self, records: Mapping[str, FormedRows]) -> int:
        """What `load` writes, between two passes: all or none."""
        records = {key: found for key, found in records.items() if key not in self._place}
        lengths: dict[RowForm, list[int]] = {}
        for form, rows in records.values():
            lengths.setdefault(form, []).append(len(rows[0]))
        for form, of_form in lengths.items():
            if self.banks.fixed and not self.banks.of(form).has_room(of_form):
                raise ServingError(
                    f"There is no room for {len(records)} more edits beside {len(self._place)}, the longest of "
                    f'{max(of_form)} rows: start the server with a larger "capacity".',
                    507,
                )
        with scope("edit: swap"):
            for key, (form, rows) in records.items():
                self._place[key] = self.banks.put(form, rows)
        return len(records)

    def _config_of(self, ledger: Ledger) -> AssociativeConfig:
        """The configuration of a folder's edits; raises where rows of its form cannot be taken."""
        config = cast(AssociativeConfig, EditingConfig.from_dict(ledger.first("store").body["config"]))
        if not self.banks.takes(form := row_form(config)):
            raise ServingError(
                f"The edits in {ledger.name} have rows of another form ({form.in_words}) than the folders that this "
                "server was started with, whose rows its captured passes read: start it with this one too.",
                422,
            )
        return config

    def _take_ground(self, ledger: Ledger) -> None:
        ground = ledger.first("ground")
        if ground is None:
            return
        background = unpacked(ledger, ground.seq, ground.body.get("tensors", {})).get("memory.background")
        if background is None or background.shape != self.banks.background.shape:
            raise ServingError(f"The edits in {ledger.name} are for a layer of another width.", 422)
        background = background.to(self.banks.background)
        if not self._grounded:
            self.banks.background.copy_(background)
            self._grounded = True
        elif not torch.allclose(background, self.banks.background, rtol=1e-3, atol=1e-5):
            raise ServingError(
                f"The edits in {ledger.name} were written over another background than those that are served.", 422
            )

    def _record(self, ledger: Ledger, config: AssociativeConfig, key: str, seq: int) -> Rows:
        body = ledger.entry(seq).body
        if _key(body) != key:
            raise ServingError(f"{ledger.name} has changed while it was loaded: load it again.", 409)
        stored = StoredEdit(seq, body)
        tensors = record_of(ledger, stored).tensors
        try:
            rows = Associative.check_rows(tensors, config, self.widths)
        except CorrigendaError as error:
            raise ServingError(f'Edit "{stored.id}" of {ledger.name} cannot be used: {error}.', 422) from None
        count = len(tensors["keys"])
        if count > self.longest:
            raise ServingError(
                f'Edit "{stored.id}" of {ledger.name} has {count} rows, and this server takes edits of at most '
                f'{self.longest}: leave it out, or start the server with "rows" of {count}.',
                507,
            )
        return rows

    def keep(self, keys: Container[str], places: Container[int] = ()) -> int:
        """Drop the edits that are neither among `keys` nor at these places; how many were dropped."""
        gone = [key for key, place in self._place.items() if key not in keys and place not in places]
        for key in gone:
            self.banks.free(self._place.pop(key))
        return len(gone)
