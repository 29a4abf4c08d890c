"""The memory as a view of a store: which stored edits are in it, and how a new batch gets into both."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..collecting import uncollected
from ..edits.edit import Edit
from ..errors import CorrigendaError
from ..methods.method import Method
from ..methods.record import Record, Solved, Written, check_values
from ..store.codec import fingerprint_of, fingerprint_text, packed, record_of, unpacked, withdrawn_of
from ..store.conflicts import SameFact, left_out, same_facts, superseding
from ..store.history import UNSOLVED, History, StoredEdit
from ..store.ledger import New
from ..store.placed import PlacedEdits
from ..store.store import CONFLICT_POLICIES, EditStore, OnConflict
from .answers import Declined
from .in_parts import Processes
from .recorded_rule import said_of_rule


class Outcome(NamedTuple):
    """What became of a batch.

    edits, written  the edits that were solved and recorded, in order, and how that went
    unsolved        those of them that are not in the memory, for they did not hold
    failing         those that did not hold and are in the memory all the same
    declined        edits that were not solved, for the sake of stored ones
    """

    edits: list[Edit]
    written: list[Written]
    unsolved: list[Edit]
    failing: list[Edit]
    declined: list[Declined]

    def and_then(self, other: Outcome) -> Outcome:
        """Of both, one after the other; what was left out first and written then is not declined."""
        declined = [one for one in self.declined + other.declined if one.edit not in other.edits]
        return Outcome(
            self.edits + other.edits,
            self.written + other.written,
            self.unsolved + other.unsolved,
            self.failing + other.failing,
            declined,
        )


class MemoryView:
    """Keeps a method's memory what the store's history says it is.

    The memory is a function of the applied edits' records, batch by batch in the order in which they were written.
    Live writing applies the very records that were stored, so the memory has the bits of one that was rebuilt. Beside
    it the router is told of the undone edits, whose questions no earlier edit is to answer.
    """

    def __init__(self, method: Method, make_store: Callable[[], EditStore]) -> None:
        self.method = method
        self._store: EditStore | None = None
        self._processes = Processes(method.decoder.parts)
        self.order: list[int] = []
        self.edits = PlacedEdits()
        """The edits in the memory, by their places; `order` has their numbers in the store."""
        self._make_store = make_store
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
        self._withdraw()

    def _withdraw(self) -> None:
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

    # Writing

    def write(
        self,
        batch: Sequence[Edit],
        later: Sequence[str | None],
        *,
        on_conflict: OnConflict,
        author: str | None,
        keep_unsolved: bool,
    ) -> Outcome:
        """Solve a batch, record it in one transaction, and write what holds of it into the memory.

        later: for each edit the id of one, still to come, by which it is left out; or None.
        When this returns, the batch is on the disk. When it raises, neither store nor memory has any of it.
        keep_unsolved: write what does not hold, too.
        """
        facts = same_facts(self.history, self.method, self.order, batch)
        taken, declined = self._chosen(batch, facts, later, on_conflict)
        order = list(self.order)
        replaced = {seq for place in taken for seq in facts[place].stored}.intersection(order)
        try:
            if replaced:
                self.become([seq for seq in order if seq not in replaced])
            solved = self.method.solve([batch[place] for place in taken]) if taken else []
            solved = self._processes.solved(solved)
            for place, one in zip(taken, solved):
                _check_solved(batch[place], one)
            unsolved = {place for place, one in zip(taken, solved) if one.written.held is False and not keep_unsolved}
            new = self._record_batch(batch, facts, taken, declined, solved, unsolved, author)
        except BaseException:
            self.become(order)
            raise
        stored = [self.history.edits[seq] for seq in new]
        wanted = [one for one in stored if one.wanted]
        superseded = {seq for one in wanted for seq in one.supersedes}
        if replaced <= superseded:
            inside = [one for one in wanted if one.seq not in superseded]
            records = {seq: one.record for seq, one in zip(new, solved)}
            self._write_in([one.seq for one in inside], records)
            # Else no mark can have come or gone: each undone edit costs 50 us here.
            if unsolved or any(one.supersedes for one in stored):
                self._withdraw()
        else:  # what an unsolved edit was to supersede stays
            self.become(self.history.applied())
        standing = replaced | set(new)
        for newer in wanted:
            for seq in sorted(standing.intersection(newer.supersedes)):
                standing.remove(seq)
                self.store.notices.append(superseding(newer.id, self.history.edits[seq].id))
        for recorded, one in zip(stored, solved):
            if one.written.held is False:
                done = "is written all the same" if recorded.wanted else "is left out"
                self.store.notices.append(
                    f'Edit "{recorded.id}" {done}: its own prompt does not get its target (loss {one.written.loss:.3g} '
                    f"after {one.written.steps} steps)."
                )
        for place, rival in declined.items():
            stands = "stays" if later[place] is None else "comes later in the stream"
            self.store.notices.append(left_out(batch[place].id, rival, stands))
        self._say_what_is_not_found([one for one in wanted if one.seq not in superseded])
        missing = [Declined(batch[place], rival) for place, rival in declined.items()]
        edits, written = [batch[place] for place in taken], [one.written for one in solved]
        failing = [edit for edit, one in zip(edits, written) if one.held is False]
        return Outcome(edits, written, *(([], failing) if keep_unsolved else (failing, [])), missing)

    def _say_what_is_not_found(self, written: Sequence[StoredEdit]) -> None:
        """A notice on each edit that its own prompt does not lead to, of a router by text: 1 ms an edit."""
        if not written or not self.method.names_edits or self.method.router.needs_features:
            return
        places = {seq: place for place, seq in enumerate(self.order)}
        found = self.method.routes([one.prompt for one in written]).route.tolist()
        for one, route in zip(written, found):
            if not self.method.holds(route, places[one.seq]):
                by = "the base model answers" if route < 0 else f'"{self.edits[route].id}" answers'
                self.store.notices.append(
                    f'Edit "{one.id}" is written, but its own prompt does not find it: {by} that.'
                )

    def _write_in(self, numbers: Sequence[int], records: dict[int, Record]) -> None:
        """Write edits that were stored just now into the memory, whose records are at hand."""
        if self.method.reads_when_asked:
            self.method.place(numbers, [records[seq].fingerprint for seq in numbers])
            for seq in numbers:
                self.method.hold(seq, records[seq])
        else:
            self.method.apply([records[seq] for seq in numbers])
        self._place([*self.order, *numbers])

    def _chosen(
        self,
        batch: Sequence[Edit],
        facts: Sequence[SameFact],
        later: Sequence[str | None],
        on_conflict: OnConflict,
    ) -> tuple[list[int], dict[int, str]]:
        """The places of a batch that are to be written; and of those that are not, with the id that stands instead."""
        taken: list[int] = []
        declined: dict[int, str] = {}
        for place, (edit, fact, coming) in enumerate(zip(batch, facts, later)):
            if coming is not None:
                declined[place] = coming
                continue
            within = [other for other in fact.within if other in taken]
            rival = batch[within[-1]] if within else None
            if rival is None and fact.rival is not None:
                rival = self.history.edits[fact.rival].edit
            if rival is not None and _policy(on_conflict, edit, rival) == "keep":
                declined[place] = rival.id
                continue
            taken.append(place)
        return taken, declined

    def _record_batch(
        self,
        batch: Sequence[Edit],
        facts: Sequence[SameFact],
        taken: Sequence[int],
        declined: dict[int, str],
        solved: Sequence[Solved],
        unsolved: Collection[int],
        author: str | None,
    ) -> list[int]:
        """The numbers of the new entries, one an edit of `taken`."""
        if self.store is None:
            self.store = self._make_store()
        store, new = self.store, []
        stamp = store.stamp(author)
        if store.history.ground is None and taken:
            new.append(New("ground", {**stamp, **said_of_rule(self.method)}, packed(self.method.ground())))
        first = store.ledger.count + len(new) + 1
        number = {place: first + i for i, place in enumerate(taken)}
        closed: dict[int, set[int]] = {}
        for place, one in zip(taken, solved):
            earlier = [other for other in facts[place].within if other in number]
            closed[place] = set(facts[place].stored).union(*({number[other]} | closed[other] for other in earlier))
            body: dict[str, Any] = {
                "id": batch[place].id,
                "edit": batch[place].to_dict(),
                "batch": first,
                "fingerprint": fingerprint_text(one.record.fingerprint),
                "numbers": one.record.numbers,
                "written": one.written._asdict(),
                "supersedes": sorted(closed[place]),
                **stamp,
            }
            # Versions before there were unsolved edits know no such entry, and refuse the ledger.
            new.append(New(UNSOLVED if place in unsolved else "edit", body, packed(one.record.tensors)))
        for place, rival in declined.items():
            body = {"id": batch[place].id, "edit": batch[place].to_dict(), "for": rival, **stamp}
            new.append(New("declined", body))
        store.append(new)
        return list(number.values())


def _check_solved(edit: Edit, solved: Solved) -> None:
    """Raise where solving an edit ended in values that none may have."""
    try:
        check_values(solved.record.tensors)
    except CorrigendaError as error:
        raise CorrigendaError(
            f'Edit "{edit.id}" was not written: {error}; write it with a smaller learning rate, or fewer steps.'
        ) from None


def _policy(on_conflict: OnConflict, edit: Edit, rival: Edit) -> str:
    chosen = on_conflict(edit, rival) if callable(on_conflict) else on_conflict
    if chosen not in CONFLICT_POLICIES:
        raise CorrigendaError(f"on_conflict must be one of {', '.join(CONFLICT_POLICIES)}, not {chosen!r}.")
    return chosen


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
