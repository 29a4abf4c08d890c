"""The memory as a view of a store: which stored edits are in it, and in which order."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor

from ..collecting import uncollected
from ..errors import CorrigendaError
from ..methods.method import Method
from ..methods.record import Record
from ..store.codec import fingerprint_of, record_of, unpacked, withdrawn_of
from ..store.history import History, StoredEdit
from ..store.placed import PlacedEdits
from ..store.store import EditStore
from .in_parts import Processes


class MemoryView:
    """Keeps a method's memory what the store's history says it is.

    The memory is a function of the applied edits' records, batch by batch in the order in which they were written.
    Live writing applies the very records that were stored, so the memory has the bits of one that was rebuilt. Beside
    it the router is told of the undone edits, whose questions no earlier edit is to answer.
    """

    def __init__(self, method: Method) -> None:
        self.method = method
        self._store: EditStore | None = None
        self._processes = Processes(method.decoder.parts)
        self.order: list[int] = []
        self.edits = PlacedEdits()
        """The edits in the memory, by their places; `order` has their numbers in the store."""
        if method.reads_when_asked:
            method.read_by(self._record)

    @property
    def store(self) -> EditStore | None:
        return self._store

    @store.setter
    def store(self, store: EditStore) -> None:
        self._store = store
        self._processes.keep(store)

    @property
    def history(self) -> History:
        return History() if self.store is None else self.store.history

    @property
    def ungrounded(self) -> bool:
        """Whether the store has its ground by now and the method has not."""
        return self.history.ground is not None and not self.method.has_background

    def holds(self, stored: StoredEdit | None) -> bool:
        """Whether a stored edit is in the memory."""
        return stored is not None and stored.seq in self.order

    def attach(self, store: EditStore) -> None:
        """Become the view of another store."""
        self.store = store
        self._place([])
        self.method.reset()
        if store.history.ground is not None:
            self._load_ground(store)
        applied = store.history.applied()
        if self.method.reads_when_asked:
            store.ledger.check_sizes({seq: store.history.edits[seq].bytes for seq in applied})
        self.become(applied)

    def _load_ground(self, store: EditStore) -> None:
        ground = store.history.ground
        tensors = unpacked(store.ledger, ground.seq, ground.body["tensors"])
        check_ground(self.method.ground(), tensors, store)
        try:
            self.method.load_ground(tensors)
        except CorrigendaError as error:
            raise CorrigendaError(f"{store.ledger.name} cannot be used: {error}.") from None

    def become(self, wanted: Sequence[int]) -> None:
        """Make the memory that of these stored edits, to the bits of a rebuild."""
        chosen = set(wanted)
        kept = [seq for seq in self.order if seq in chosen]
        gone = {place for place, seq in enumerate(self.order) if seq not in chosen}
        goes_on = kept == list(wanted[: len(kept)]) and not self._splits_a_batch(kept, wanted)
        if not goes_on or (gone and not self.method.remove(gone)):
            self.method.reset()
            kept = []
        self._place(kept)
        self._apply(wanted[len(kept) :])
        self.withdraw()

    def withdraw(self) -> None:
        """Tell the router of the undone edits; one whose routes name no edits knows none."""
        if self.method.names_edits:
            self.method.router.withdraw(*withdrawn_of(self.history, self.order), self.order)

    def _splits_a_batch(self, kept: Sequence[int], wanted: Sequence[int]) -> bool:
        edits = self.history.edits
        return 0 < len(kept) < len(wanted) and edits[kept[-1]].batch == edits[wanted[len(kept)]].batch

    def _place(self, order: Sequence[int]) -> None:
        self.order = list(order)
        self.edits = PlacedEdits(self.history.edits[seq] for seq in order)

    def _apply(self, added: Sequence[int]) -> None:
        if not added:
            return
        edits = self.history.edits
        if self.method.reads_when_asked:
            self._place_rows(added)
        else:
            self.method.reserve(len(self.order) + len(added), 1, 1)
            for _, batch in itertools.groupby(added, key=lambda seq: edits[seq].batch):
                self.method.apply([self._record(seq) for seq in batch])
        self._place([*self.order, *added])

    def _place_rows(self, added: Sequence[int]) -> None:
        """Let the method know of stored edits whose records it reads when it is asked for them."""
        stored = [self.history.edits[seq] for seq in added]
        fingerprints = [fingerprint_of(one) for one in stored]
        try:
            with uncollected():
                self.method.place(added, fingerprints)
        except CorrigendaError as error:
            unfit = (one for one, known in zip(stored, fingerprints) if not self.method.router.fits(known))
            named = next(unfit, stored[0])
            raise self._unusable(named, error) from None

    def _record(self, seq: int) -> Record:
        stored = self.history.edits[seq]
        record = record_of(self.store.ledger, stored)
        try:
            self.method.check(record)
        except CorrigendaError as error:
            raise self._unusable(stored, error) from None
        return record

    def _unusable(self, stored: StoredEdit, error: CorrigendaError) -> CorrigendaError:
        return CorrigendaError(f'Edit "{stored.id}" of {self.store.ledger.name} cannot be used: {error}.')

    def read_all(self) -> None:
        """Read all edits and rows that were not asked for yet: the store is about to be closed."""
        for _ in self.edits:  # each keeps what it has read
            pass
        if self.method.reads_when_asked:
            self.method.bring_all()

    def write_in(self, numbers: Sequence[int], records: dict[int, Record]) -> None:
        """Write edits that were stored just now into the memory, whose records are at hand."""
        if self.method.reads_when_asked:
            self.method.place(numbers, [records[seq].fingerprint for seq in numbers])
            for seq in numbers:
                self.method.hold(seq, records[seq])
        else:
            self.method.apply([records[seq] for seq in numbers])
        self._place([*self.order, *numbers])


def check_ground(own: dict[str, Tensor], found: dict[str, Tensor], store: EditStore) -> None:
    """Raise unless stored ground tensors have the names and widths of this model's."""
    optional = {"memory.weight", "router.meaning"}  # the latter says nothing to a router by tokens
    fits = found.keys() - optional == own.keys() - optional and all(
        tensor.dim() == own[name].dim() and (tensor.dim() == 0 or tensor.shape[-1] == own[name].shape[-1])
        for name, tensor in found.items()
        # A token router's background has as many columns as its longest prompt has tokens; the other is a text.
        if name in own and not (name in ("router.background", "router.meaning") and own[name].dim() == 2)
    )
    if not fits:
        raise CorrigendaError(
            f"{store.ledger.name} cannot be used: its ground tensors are another method's or model's."
        )
