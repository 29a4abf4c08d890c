"""Stored edits for another router: the same ledger, with what that router knows each edit by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from ..backbone.identity import another_model, tokenizer_digest
from ..backbone.loading import load_tokenizer
from ..errors import CorrigendaError
from ..methods.config import EditingConfig
from ..methods.registry import text_router
from ..routers.router import EditRouter
from ..store.codec import fingerprint_text, packed, unpacked
from ..store.ledger import Ledger, New
from ..store.store import EditStore
from .recorded_rule import rule_here
from .saving import routed_by

_GROUND = "router."


def rerouted(store: EditStore, router: str, out: Path, model: str) -> int:
    """Write a store anew into a new folder, for "meaning" or "tokens"; returns how many edits it has.

    For "meaning" from "meaning" too, where the rule is another than this version's: what is kept of each edit is then
    read out of its texts as now.

    Everything stays as it was written, with its number and its time, but for the configuration, the ground of the
    router and the edits' fingerprints; what was signed is to be signed again. model: the base model, of which the
    tokenizer is loaded alone. Raises CorrigendaError for edits that are not found by text.
    """
    config = EditingConfig.from_dict(store.header["config"])
    own = getattr(config, "router", None)
    if own not in ("meaning", "tokens") or router not in ("meaning", "tokens"):
        raise CorrigendaError(
            f"{store.ledger.name} cannot be written for the router {router!r}: only edits for `tokens` and `meaning` "
            f"can be, and only for these; its edits are for {'none' if own is None else repr(own)}."
        )
    if own == router and store.history.rule == rule_here(config):
        raise CorrigendaError(f"{store.ledger.name} is for the router {router!r} already: nothing was written.")
    tokenizer = load_tokenizer(model)
    if sentence := another_model(store.ledger.name, store.header["base"], {"tokenizer": tokenizer_digest(tokenizer)}):
        raise CorrigendaError(sentence)
    changed = routed_by(config, router)
    found = text_router(changed, tokenizer)
    ground = store.history.ground
    tensors: dict[str, Tensor] = {}
    if ground is not None:
        tensors = unpacked(store.ledger, ground.seq, ground.body["tensors"])
        old = {name: tensor for name, tensor in tensors.items() if name.startswith(_GROUND)}
        background = {"router.background": old["router.background"]}
        # The background stays, and with it how rare tokens are; the rest of the ground is the new router's own.
        found.load_ground({**found.ground(), **background})
        tensors = {name: tensor for name, tensor in tensors.items() if name not in old} | found.ground()
    EditStore.filled(out, _filler(store, changed, tensors, found)).close()
    return len(store.history.edits)


def _filler(
    store: EditStore, config: EditingConfig, ground: dict[str, Tensor], router: EditRouter
) -> Callable[[Ledger], object]:
    edits = list(store.history.edits.values())
    prints = router.fingerprints_of([stored.edit.prompt for stored in edits], [stored.edit for stored in edits])
    texts = {stored.seq: fingerprint_text(row) for stored, row in zip(edits, prints)}
    kept = set(store.ledger.owners())
    begun = None if store.history.ground is None else store.history.ground.seq

    def entries() -> Iterator[New]:
        for entry in store.ledger.entries(after=0):
            body: dict[str, Any] = dict(entry.body)
            if entry.kind == "store":
                body["config"] = config.to_dict()
            body.pop("rule", None)
            if entry.seq == begun and router.rule is not None:
                body["rule"] = router.rule
            if entry.seq in texts:
                body["fingerprint"] = texts[entry.seq]
            data = None
            if entry.seq in kept:
                data = packed(ground) if entry.seq == begun else store.ledger.tensors(entry.seq, body["tensors"])
            yield New(entry.kind, body, data)

    return lambda ledger: ledger.append(entries())
