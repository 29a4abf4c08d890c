"""What one tenant's requests are answered by: which edits it sees, and a router that knows them in their order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..editing.routers.router import EditRouter
from .served_edits import ServedEdit, words_of


class Seen(NamedTuple):
    """Of one tenant, in one version: the router, and the edits by its places; snapshot: a name for all they are."""

    router: EditRouter
    edits: list[ServedEdit]
    version: int
    snapshot: str


def seen_by(
    tenant: str | None,
    stores: Mapping[tuple[str | None, Path], Sequence[ServedEdit]],
    fact_of: Callable[[Tensor], Any],
) -> list[ServedEdit]:
    """A tenant's edits: shared ones, but for those about a fact (the same fingerprint) that it has its own of.

    Among edits of equal fingerprint in several stores, those of the store that is served last are seen: first the
    shared stores, then the tenant's, each in the order in which they were first loaded. Within a store all are
    seen: it has superseded what is about the same fact, and what is left are other questions of the same tokens.
    """
    owners = dict.fromkeys((None, tenant))
    order = [(store, edits) for of in owners for store, edits in stores.items() if store[0] == of]
    facts = {edit.key: fact_of(words_of(edit.fingerprint)) for _, edits in order for edit in edits}
    last = {facts[edit.key]: store for store, edits in order for edit in edits}
    return [edit for store, edits in order for edit in edits if last[facts[edit.key]] == store]


def change_known(router: EditRouter, known: Sequence[ServedEdit], wanted: Sequence[ServedEdit]) -> None:
    """Have a router that knows some edits know others, `wanted`, at their places.

    In the order of a server that starts now: of edits that a prompt fits alike the first one answers, so one that is
    redone goes back to its old place, and not to the end.
    """
    keys = {edit.key for edit in wanted}
    still = [place for place, edit in enumerate(known) if edit.key in keys]
    in_place = itertools.takewhile(lambda pair: known[pair[0]].key == pair[1].key, zip(still, wanted))
    kept = [place for place, _ in in_place]
    gone = set(range(len(known))).difference(kept)
    if gone:
        router.remove(gone)
    router.add_fingerprints([words_of(edit.fingerprint) for edit in wanted[len(kept) :]])
