"""Between stores: merging one into another, the difference of two, and edits as a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CorrigendaError
from ..methods.config import EditingConfig
from ..shown import LONGEST_NAME, shown, shown_json
from .check import check_record
from .conflicts import left_out, rewrites, superseding
from .files import write_whole
from .history import APPLIED, LOST, History, StoredEdit, normalised_prompt
from .ledger import New
from .store import EditStore


class Merged(NamedTuple):
    """What a merge did, by ids.

    added       edits that came in, by their ids here
    same        edits of the other store that are in effect here too
    out         the same edit is here, but undone, unsolved or superseded, and stays so: by its id here, that status
    superseded  edits that were here, and for which one of `added` stands now
    kept        edits of the other store that were left out, with the edit that is here and for which that was done
    renamed     ids of the other store with the new one here
    """

    added: list[str]
    same: list[str]
    out: dict[str, str]
    superseded: list[str]
    kept: dict[str, str]
    renamed: dict[str, str]


def difference(one: EditStore, two: EditStore) -> list[dict[str, Any]]:
    """How the edits in effect differ, by prompt: removed, added, or changed to another target."""
    before, after = ({normalised_prompt(e.prompt): e for e in in_effect(store.history)} for store in (one, two))
    rows = []
    for key in [*before, *(key for key in after if key not in before)]:
        old, new = before.get(key), after.get(key)
        shown = new or old
        row = {"id": shown.id, "prompt": shown.prompt, "target": shown.target}
        if new is None:
            rows.append({"change": "removed", **row})
        elif old is None:
            rows.append({"change": "added", **row})
        elif old.target != new.target:
            rows.append({"change": "changed", **row, "before": old.target})
    return rows


def in_effect(history: History) -> list[StoredEdit]:
    """The edits that make up the memory."""
    return [history.edits[seq] for seq in history.applied()]


def exported(store: EditStore, everything: bool = False) -> list[str]:
    """The edits in effect as lines of JSON that `corrigenda edit` reads; with `everything`, all, with status.

    Raises where there are none: `corrigenda edit` takes no file without edits either.
    """
    statuses = store.history.statuses()
    rows = []
    for stored in store.history.edits.values():
        status = statuses[stored.seq]
        record = {**stored.body["edit"], "id": stored.id}
        if everything:
            record |= {"status": status, "time": stored.time, "author": stored.author}
        if everything or status == APPLIED:
            rows.append(shown_json(record))
    if not rows:
        others = f"; --all exports the {len(statuses)} that are not in effect" if statuses else ""
        raise CorrigendaError(f"No edit is in effect in {store.ledger.name}: nothing was written{others}.")
    return rows


def export(store: EditStore, file: Path, everything: bool = False) -> int:
    """Write `exported` to a new file; how many edits that are."""
    if file.exists():
        raise CorrigendaError(f"{file} exists already: name a new file.")
    rows = exported(store, everything)
    write_whole(file, "".join(row + "\n" for row in rows))
    return len(rows)


class _Case(NamedTuple):
    """What a merge does with one edit of the other store.

    what   "same": it is in effect here; "out": it is here, and stays out; "kept": one of its fact stays; or "added"
    like   the edit here that it is, or that stays; None for an added one
    facts  numbers of all edits here that are about the same fact
    """

    what: str
    stored: StoredEdit
    like: StoredEdit | None = None
    facts: frozenset[int] = frozenset()


def merge(into: EditStore, other: EditStore, on_conflict: str = "supersede", author: str | None = None) -> Merged:
    """Add the edits that are in effect in another store of the same model and configuration, in one transaction.

    Where both are about the same fact, the other store's is the later write: it supersedes, or with "keep" is left out.
    An edit that both have is taken once; one that was undone here stays so, and `into.notices` says it; only one that
    was lost here, in a repair, comes in again. What the other store has undone stays there: here it is not known as
    withdrawn. A MEMOIR edit was found in the presence of its own store's other edits; its recorded update is added as
    it is.
    """
    check_mergeable(into, other)
    if into.history.ground and other.history.ground and into.history.rule != other.history.rule:
        into.notices.append(
            f"The edits in {other.ledger.name} were written with another rule for finding edits than those in "
            f"{into.ledger.name}, whose rule stays recorded."
        )
    history, applied, statuses = into.history, set(into.history.applied()), into.history.statuses()
    names = _Names(history, other)
    merged = Merged([], [], {}, [], {}, {})
    chosen: list[tuple[StoredEdit, str, list[int]]] = []
    for case in _cases(into, other, on_conflict):
        stored, like = case.stored, case.like
        if case.what == "same":
            merged.same.append(stored.id)
        elif case.what == "out":
            merged.out[like.id] = statuses[like.seq]
            into.notices.append(_still_out(into, like))
        elif case.what == "kept":
            merged.kept[stored.id] = like.id
            into.notices.append(left_out(stored.id, like.id))
        else:
            name = names.new(stored.id)
            if name != stored.id:
                merged.renamed[stored.id] = name
            for seq in sorted(case.facts & applied):
                merged.superseded.append(history.edits[seq].id)
                into.notices.append(superseding(name, history.edits[seq].id))
            merged.added.append(name)
            chosen.append((stored, name, sorted(case.facts)))
    if chosen:
        into.append(_entries(into, other, chosen, into.stamp(author)))
    return merged


def _cases(into: EditStore, other: EditStore, on_conflict: str) -> Iterator[_Case]:
    """Of each edit in effect in the other store, what a merge does with it; raises for one that cannot be merged."""
    history, applied, statuses = into.history, set(into.history.applied()), into.history.statuses()
    by_fingerprint: dict[bytes, list[StoredEdit]] = {}
    for mine in in_effect(history):
        if mine.fingerprint:  # WISE without replay knows no edit by one
            by_fingerprint.setdefault(mine.fingerprint, []).append(mine)
    for stored in in_effect(other.history):
        if stored.inherited:
            raise CorrigendaError(
                f'Edit "{stored.id}" of {other.ledger.name} came in a matrix that holds several edits in one: it '
                "cannot be merged."
            )
        facts = set(history.same_prompt(stored.prompt))
        same = [seq for seq in facts if statuses[seq] != LOST and _same(history.edits[seq], stored)]
        if same:
            what = "out" if applied.isdisjoint(same) else "same"
            yield _Case(what, stored, history.edits[max(same)])
            continue
        check_record(other.ledger, other.history, stored)
        facts.update(like.seq for like in by_fingerprint.get(stored.fingerprint, ()) if rewrites(stored, like))
        rivals = facts & applied
        if rivals and on_conflict == "keep":
            yield _Case("kept", stored, history.edits[max(rivals)])
            continue
        earlier = [seq for fact in facts for seq in history.edits[fact].supersedes]
        yield _Case("added", stored, facts=frozenset(facts.union(earlier)))


class _Names:
    """Ids for edits of another store: their own, where none here has it."""

    def __init__(self, history: History, other: EditStore) -> None:
        self._taken = {stored.id for stored in history.edits.values()}
        self._store = shown(other.header["id"][:8])

    def new(self, name: str) -> str:
        name = shown(name)  # in folders of earlier versions an id may hold anything
        if name in self._taken:
            name = f"{name}-{self._store}"
            while name in self._taken:
                name += "+"
        if len(name) > LONGEST_NAME:
            name = f"{name[: LONGEST_NAME - 17]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        self._taken.add(name)
        return name


def check_mergeable(into: EditStore, other: EditStore) -> None:
    """Raise unless two stores are for one model, configuration and ground: only then do records fit both.

    How an edit is solved may differ.
    """
    if into.header["id"] == other.header["id"] and into.directory == other.directory:
        raise CorrigendaError(f"{into.ledger.name} cannot be merged with itself.")
    one, two = (EditingConfig.from_dict(store.header["config"]) for store in (into, other))
    # By whole configurations: an older folder does not name all of its settings.
    names = _differing(one.to_dict(), two.to_dict()) - one.only_solving
    if names and names <= one.unnamed.keys():
        raise CorrigendaError(
            f"The stores cannot be merged: they keep rows in different forms ({', '.join(sorted(names))}). One server "
            "takes both folders beside each other; to have one folder, write one's edits anew (`corrigenda export`, "
            "`corrigenda edit`)."
        )
    for part, differing in (
        ("config", names),
        ("prompts", _differing(into.header["prompts"], other.header["prompts"])),
    ):
        if differing:
            raise CorrigendaError(
                f"The stores cannot be merged: they differ in {part} ({', '.join(sorted(differing))})."
            )
    for name in ("layers", "widths", "tokenizer"):
        if into.header["base"][name] != other.header["base"][name]:
            raise CorrigendaError(f"The stores cannot be merged: they are for different models ({name}).")
    if _digest(into.history.store.body) != _digest(other.history.store.body):
        raise CorrigendaError("The stores cannot be merged: they are for models of different weights.")
    mine, theirs = into.history.ground, other.history.ground
    if mine is not None and theirs is not None and _digest(mine.body) != _digest(theirs.body):
        raise CorrigendaError(
            "The stores cannot be merged: their fingerprints stand on different ground (background or permutation)."
        )


def _differing(mine: dict[str, Any], theirs: dict[str, Any]) -> set[str]:
    return {name for name in mine | theirs if mine.get(name) != theirs.get(name)}


def _entries(
    into: EditStore, other: EditStore, chosen: list[tuple[StoredEdit, str, list[int]]], stamp: dict[str, Any]
) -> Iterator[New]:
    number = into.ledger.count
    ground = other.history.ground
    if into.history.ground is None:
        number += 1
        rule = {} if other.history.rule is None else {"rule": other.history.rule}
        yield New("ground", {**stamp, **rule}, other.ledger.tensors(ground.seq, ground.body["tensors"]))
    batches: dict[int, int] = {}
    for stored, name, facts in chosen:
        number += 1
        written = stored.body
        body = {
            **written,
            "author": None if stored.author is None else shown(stored.author)[:LONGEST_NAME],
            "id": name,
            "batch": batches.setdefault(stored.batch, number),
            "supersedes": facts,
            "origin": {"store": other.header["id"], "id": stored.id, "seq": stored.seq, "time": stored.time},
            "time": stamp["time"],
        }
        yield New("edit", body, other.ledger.tensors(stored.seq, written["tensors"]))


def _same(one: StoredEdit, two: StoredEdit) -> bool:
    """Whether two are one edit, whatever merges have named them: "edit" keeps the id that it was written under."""
    mine, theirs = one.body, two.body
    return mine["edit"] == theirs["edit"] and _digest(mine) == _digest(theirs)


def _still_out(store: EditStore, stored: StoredEdit) -> str:
    """Of an edit that a merge found here, but not in effect: why not, and what would put it in again."""
    where = "" if store.directory is None else f"{store.directory} "
    name = f'Edit "{stored.id}" is there, but'
    if stored.dropped:
        return f"{name} was undone, and its tensors are no longer kept: write it anew to have it again."
    if stored.unsolved:
        return f"{name} does not hold, and a merge leaves it out: `corrigenda redo {where}{stored.id}` puts it in."
    if not stored.wanted:
        return f"{name} was undone, and a merge leaves it so: `corrigenda redo {where}{stored.id}` puts it in again."
    later = store.history.edits[store.history.superseded_by()[stored.seq]].id
    return f'{name} is superseded by "{later}": `corrigenda undo {where}{later}` has it in again.'


def _digest(body: dict[str, Any]) -> str | None:
    return body.get("tensors", {}).get("sha256")
