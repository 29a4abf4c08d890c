"""A served memory with room for the edits of the requests in flight: others' rows are read when one comes for them."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..editing.errors import CorrigendaError
from ..editing.memories.paged_banks import PagedBanks
from ..editing.memories.row_form import RowForm, Rows
from ..editing.methods.associative.config import AssociativeConfig, row_form
from ..editing.store.ledger import Ledger
from .errors import ServingError
from .memory import ServedMemory


class Source(NamedTuple):
    """Where the rows of an edit are read: its folder, that one's configuration, and its number in the ledger there."""

    folder: Path
    config: AssociativeConfig
    seq: int

    @property
    def form(self) -> RowForm:
        return row_form(self.config)


class PagedServedMemory(ServedMemory):
    """`ServedMemory` with room for `resident` edits of each form, none of more than `rows` rows; the buffers keep their
    addresses, for all requests of a batch may be about edits of one form.

    Loading a folder notes where its rows are. They are read, and checked, for a request when that comes (`rows`), and
    put where the layer reads before its first pass (`bring`); what was asked for longest ago makes room. Whoever calls
    sees to it that one thread does so at a time.
    """

    def __init__(self, resident: int, *args: Any) -> None:
        super().__init__(*args)
        self.resident = resident
        self.longest = self.rows
        self._paged: dict[RowForm, PagedBanks] = {}
        self._sources: dict[str, Source] = {}
        self._ledgers: dict[Path, Ledger] = {}

    def __len__(self) -> int:
        return len(self._sources)

    def _make_room(self, form: RowForm, edits: int) -> None:
        """All the room that there will be for a form is there from its first folder on, however many edits come."""
        if form not in self._paged:
            paged = self._paged[form] = PagedBanks(self.banks.of(form), self.counts)
            paged.limit(self.resident, self.rows, self.rows)

    def place(self, key: str | None) -> int:
        source = None if key is None else self._sources.get(key)
        if source is None or key not in self._paged[source.form]:
            return -1
        return self.banks.place(source.form, self._paged[source.form].slot(key))

    def knows(self, key: str) -> bool:
        return key in self._sources

    def read(self, directory: str | Path, edits: Mapping[str, int]) -> dict[str, Any]:
        """Where the rows of new edits are, while passes may run; and what all of them stand on."""
        folder = Path(directory)
        new = {key: seq for key, seq in edits.items() if key not in self._sources}
        if not new and self._grounded:
            return {}
        ledger = Ledger.open(folder)
        try:
            self._take_ground(ledger)
            config = self._config_of(ledger)
        finally:
            ledger.close()
        return {key: Source(folder, config, seq) for key, seq in new.items()}

    def put(self, records: Mapping[str, Any]) -> int:
        new = {key: source for key, source in records.items() if key not in self._sources}
        for source in new.values():
            self._make_room(source.form, len(new))
        self._sources.update(new)
        return len(new)

    def keep(self, keys: Container[str], places: Container[int] = ()) -> int:
        gone = [key for key in self._sources if key not in keys and self.place(key) not in places]
        for key in gone:
            self._paged[self._sources.pop(key).form].drop(key)
        for folder in self._ledgers.keys() - {source.folder for source in self._sources.values()}:
            self._ledgers.pop(folder).close()
        return len(gone)

    def rows_of(self, key: str) -> Rows:
        """The rows of an edit, checked, for a request that has come. Raises ServingError where they are damaged."""
        if (place := self.place(key)) >= 0:
            return self.banks.kept_rows(place)
        source = self._sources[key]
        try:
            return self._read(key, source)
        except ServingError:
            raise
        except CorrigendaError as error:
            raise ServingError(str(error), 500) from None

    def _read(self, key: str, source: Source) -> Rows:
        if source.folder in self._ledgers:
            try:
                return self._record(self._ledgers[source.folder], source.config, key, source.seq)
            except CorrigendaError:  # maybe another folder has come in this one's place
                self._ledgers.pop(source.folder).close()
        ledger = self._ledgers[source.folder] = Ledger.open(source.folder)
        return self._record(ledger, source.config, key, source.seq)

    def bring(self, key: str, rows: Rows, kept: Container[str | None]) -> int:
        """Where the layer reads an edit, whose rows are put there unless they are; those `kept` make no room."""
        form = self._sources[key].form
        return self.banks.place(form, self._paged[form].bring(key, lambda: rows, kept))
