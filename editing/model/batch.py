"""A batch of edits on its way into store and memory: solved, recorded at once, and written as far as it holds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from ..edits.edit import Edit
from ..errors import CorrigendaError
from ..methods.record import Solved, Written, check_values
from ..store.codec import fingerprint_text, packed
from ..store.conflicts import SameFact, left_out, same_facts, superseding
from ..store.history import UNSOLVED, History, StoredEdit
from ..store.ledger import New
from ..store.store import CONFLICT_POLICIES, EditStore, OnConflict
from .answers import Declined
from .in_parts import Processes
from .recorded_rule import said_of_rule
from .view import MemoryView


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


class BatchWriter:
    """Writes batches of edits into the store of a view and the memory.

    make_store  makes the store, where the first batch finds none
    """

    def __init__(self, view: MemoryView, make_store: Callable[[], EditStore]) -> None:
        self.view = view
        self._make_store = make_store
        self._processes = Processes(view.method.decoder.parts)

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
        view = self.view
        facts = same_facts(view.history, view.method, view.order, batch)
        taken, declined = _chosen(view.history, batch, facts, later, on_conflict)
        order = list(view.order)
        replaced = {seq for place in taken for seq in facts[place].stored}.intersection(order)
        try:
            if replaced:
                view.become([seq for seq in order if seq not in replaced])
            solved = view.method.solve([batch[place] for place in taken]) if taken else []
            solved = self._processes.solved(solved)
            for place, one in zip(taken, solved):
                _check_solved(batch[place], one)
            unsolved = {place for place, one in zip(taken, solved) if one.written.held is False and not keep_unsolved}
            new = self._record_batch(batch, facts, taken, declined, solved, unsolved, author)
        except BaseException:
            view.become(order)
            raise
        stored = [view.history.edits[seq] for seq in new]
        wanted = [one for one in stored if one.wanted]
        superseded = {seq for one in wanted for seq in one.supersedes}
        if replaced <= superseded:
            inside = [one for one in wanted if one.seq not in superseded]
            records = {seq: one.record for seq, one in zip(new, solved)}
            view.write_in([one.seq for one in inside], records)
            # Else no mark can have come or gone: each undone edit costs 50 us here.
            if unsolved or any(one.supersedes for one in stored):
                view.withdraw()
        else:  # what an unsolved edit was to supersede stays
            view.become(view.history.applied())
        standing = replaced | set(new)
        for newer in wanted:
            for seq in sorted(standing.intersection(newer.supersedes)):
                standing.remove(seq)
                view.store.notices.append(superseding(newer.id, view.history.edits[seq].id))
        for recorded, one in zip(stored, solved):
            if one.written.held is False:
                done = "is written all the same" if recorded.wanted else "is left out"
                view.store.notices.append(
                    f'Edit "{recorded.id}" {done}: its own prompt does not get its target (loss {one.written.loss:.3g} '
                    f"after {one.written.steps} steps)."
                )
        for place, rival in declined.items():
            stands = "stays" if later[place] is None else "comes later in the stream"
            view.store.notices.append(left_out(batch[place].id, rival, stands))
        self._say_what_is_not_found([one for one in wanted if one.seq not in superseded])
        missing = [Declined(batch[place], rival) for place, rival in declined.items()]
        edits, written = [batch[place] for place in taken], [one.written for one in solved]
        failing = [edit for edit, one in zip(edits, written) if one.held is False]
        return Outcome(edits, written, *(([], failing) if keep_unsolved else (failing, [])), missing)

    def _say_what_is_not_found(self, written: Sequence[StoredEdit]) -> None:
        """A notice on each edit that its own prompt does not lead to, of a router by text: 1 ms an edit."""
        view = self.view
        if not written or not view.method.names_edits or view.method.router.needs_features:
            return
        places = {seq: place for place, seq in enumerate(view.order)}
        found = view.method.routes([one.prompt for one in written]).route.tolist()
        for one, route in zip(written, found):
            if not view.method.holds(route, places[one.seq]):
                by = "the base model answers" if route < 0 else f'"{view.edits[route].id}" answers'
                view.store.notices.append(
                    f'Edit "{one.id}" is written, but its own prompt does not find it: {by} that.'
                )

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
        if self.view.store is None:
            self.view.store = self._make_store()
        store, new = self.view.store, []
        stamp = store.stamp(author)
        if store.history.ground is None and taken:
            new.append(New("ground", {**stamp, **said_of_rule(self.view.method)}, packed(self.view.method.ground())))
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


def _chosen(
    history: History,
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
            rival = history.edits[fact.rival].edit
        if rival is not None and _policy(on_conflict, edit, rival) == "keep":
            declined[place] = rival.id
            continue
        taken.append(place)
    return taken, declined


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
