"""Which requests the edits of a store would answer, without generating; and those that new ones would."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..backbone.identity import another_model, tokenizer_digest
from ..backbone.loading import load_tokenizer
from ..edits.edit import Edit, kind_of
from ..edits.prompts import PromptFormat
from ..errors import CorrigendaError, FieldError
from ..methods.config import EditingConfig
from ..methods.registry import text_router
from ..routers.router import EditRouter
from ..store.codec import fingerprint_of, unpacked, withdrawn_of
from ..store.store import EditStore
from .recorded_rule import another_rule
from .saving import opened_by

_TOGETHER = 256
"""Requests decided at a time."""


class Routed(NamedTuple):
    """What a router decided about a request.

    id       the id of the edit that answers it, or None
    new      whether that edit is one of those that are not written yet
    score    of the nearest edit, 0 to 1; `margin`: how far that is above what it takes to answer
    nearest  the id of the nearest edit, or None
    reason   what keeps that from answering, said of the request, where the router knows
    before   the id of the edit that answers it without the new ones
    """

    prompt: str
    id: str | None
    new: bool
    score: float
    margin: float
    nearest: str | None
    reason: str | None
    before: str | None

    def to_dict(self, with_new: bool) -> dict[str, Any]:
        """As JSON; `new` and `before` only where there are new edits."""
        found = {**self._asdict(), "score": round(self.score, 6), "margin": round(self.margin, 6)}
        return found if with_new else {name: value for name, value in found.items() if name not in ("new", "before")}


def routed_requests(
    store: EditStore,
    requests: Sequence[str],
    model: str,
    new: Sequence[Edit] = (),
    *,
    router: str | None = None,
    decoys: Sequence[str] = (),
) -> list[Routed]:
    """What the edits in effect, and `new` ones beside them, would answer of these requests, in order.

    model: the base model, of which a router by text needs the tokenizer alone. router: as in
    `EditedModel.from_pretrained`. decoys: more questions that no edit answers, with "it" for the subject. A new edit
    with the id or the prompt of a stored one stands beside it here; written, it would take its place. Raises
    CorrigendaError for methods whose routes name no edits, and those that need the model's features.
    """
    history = store.history
    order = history.applied()
    names = [history.edits[seq].id for seq in order]
    by, prompts = by_text(store, order, model, router)
    if decoys:
        by.add_decoys(decoys)
    asked = [prompts.question(prompts.encode(prompts.wrap(request))) for request in requests]
    before = _decided(by, asked, names)
    after = before
    if new:
        added = [edit if edit.id else replace(edit, id=f"new-{i}") for i, edit in enumerate(new)]
        by.add_fingerprints(by.fingerprints_of([edit.prompt for edit in added], added))
        after = _decided(by, asked, [*names, *(str(edit.id) for edit in added)], len(names))
    return [one._replace(prompt=request, before=was.id) for request, was, one in zip(requests, before, after)]


def _decided(
    router: EditRouter, asked: Sequence[str], names: Sequence[str], written: int | None = None
) -> list[Routed]:
    """What a router of edits with these ids decides; the first `written` of them, or all, are in the store."""
    found = []
    for start in range(0, len(asked), _TOGETHER):
        part = asked[start : start + _TOGETHER]
        columns = (column.tolist() for column in router.decide(part))
        for request, route, nearest, score, _, margin, _, against in zip(part, *columns):
            name = names[route] if route >= 0 else None
            near = names[nearest] if 0 <= nearest < len(names) else None
            reason = router.in_words(against) if route < 0 else None
            fresh = written is not None and route >= written
            found.append(Routed(request, name, fresh, score, margin, near, reason, None))
    return found


def by_text(
    store: EditStore, order: Sequence[int], model: str, router: str | None = None
) -> tuple[EditRouter, PromptFormat]:
    """The router of a store whose edits are found by text, with those of `order`, and the format of its prompts."""
    config = opened_by(EditingConfig.from_dict(store.header["config"]), router)
    if not config.routed_by_text:
        raise CorrigendaError(
            f"The edits in {store.ledger.name} ({config.method}) are found by features of the model: ask it by "
            "`corrigenda generate --provenance`."
        )
    tokenizer = load_tokenizer(model)
    if sentence := another_model(store.ledger.name, store.header["base"], {"tokenizer": tokenizer_digest(tokenizer)}):
        raise CorrigendaError(sentence)
    if sentence := another_rule(store, config):
        store.notices.append(sentence)
    found = text_router(config, tokenizer)
    history = store.history
    with _of(store):
        if history.ground is not None:
            found.load_ground(unpacked(store.ledger, history.ground.seq, history.ground.body["tensors"]))
    found.add_fingerprints([fingerprint_of(history.edits[seq]) for seq in order])
    found.withdraw(*withdrawn_of(history, order), order)
    prompts = PromptFormat(tokenizer, store.header["prompts"]["template"], store.header["prompts"]["chat"])
    return found, prompts


@contextlib.contextmanager
def _of(store: EditStore) -> Iterator[None]:
    try:
        yield
    except CorrigendaError as error:
        raise CorrigendaError(f"{store.ledger.name} cannot be used: {str(error).rstrip('.')}.") from None


def request_of(record: Mapping[str, Any]) -> str:
    """The request of a record: its `prompt`, or what the last user turn of its `messages` says."""
    if record.get("messages") is None:
        text = record.get("prompt")
        if not isinstance(text, str):
            raise FieldError("prompt", f"must be text, not {kind_of(text)}" if text is not None else "is missing")
        return text
    messages = record["messages"]
    if not isinstance(messages, list) or not all(isinstance(turn, Mapping) for turn in messages):
        raise FieldError("messages", "must be a list of objects with `role` and `content`")
    said = [turn.get("content") for turn in messages if turn.get("role") == "user"]
    if not said:
        raise FieldError("messages", 'has no turn of the role "user"')
    parts = said[-1] if isinstance(said[-1], list) else [{"text": said[-1]}]
    texts = [part.get("text") for part in parts if isinstance(part, Mapping) and part.get("text") is not None]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise FieldError("messages", "has no text in its last user turn")
    return "\n".join(texts)


def doubtful(found: Sequence[Routed]) -> list[Routed]:
    """The requests that are near an edit, the narrowest decisions first."""
    return sorted((one for one in found if one.nearest is not None), key=lambda one: abs(one.margin))


def grouped(found: Sequence[Routed]) -> dict[str, list[Routed]]:
    """The requests that an edit answers, by its id, edits with many first; the doubtful ones of each first."""
    groups: dict[str, list[Routed]] = {}
    for one in found:
        if one.id is not None:
            groups.setdefault(one.id, []).append(one)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return {name: sorted(of_edit, key=lambda one: one.margin) for name, of_edit in ordered}
