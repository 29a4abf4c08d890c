"""Which edit answers a prompt and why: the scores of those that come nearest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..backbone.loading import PACKAGED, load_base
from ..edits.answer_start import AnswerStarts
from ..edits.edit import required_text
from ..edits.prompts import PromptFormat
from ..errors import CorrigendaError, FieldError
from ..methods.config import EditingConfig
from ..routers.router import EditRouter
from ..store.store import EditStore
from .answers import provenance_of
from .route import by_text
from .saving import opened_by

if TYPE_CHECKING:
    from .edited_model import EditedModel


def nearest_edits(
    store: EditStore, prompt: str, model: str | None = None, most: int = 5, router: str | None = None
) -> dict[str, Any]:
    """The edits that come nearest to a prompt, best first, and whether one applies (see `explained`).

    A router by text needs the model's tokenizer alone; one by features needs the model. router: as in
    `EditedModel.from_pretrained`.
    """
    try:
        required_text("prompt", prompt)
    except FieldError as error:
        raise CorrigendaError(f"The {error.field} {error.problem}: ask a question.") from None
    if most < 1:
        raise CorrigendaError(f"The number of edits to show must be at least 1, not {most}.")
    name = model or recorded_model(store)
    history = store.history
    order = history.applied()
    edits = [history.edits[seq] for seq in order]
    if opened_by(EditingConfig.from_dict(store.header["config"]), router).routed_by_text:
        found, prompts = by_text(store, order, name, router)
        return explained_text(found, prompts, AnswerStarts(prompts, store.header["config"]["eos"]), prompt, edits, most)
    with _loaded(store, name) as edited, torch.no_grad():
        if not edited.method.names_edits:
            return _by_memory(edited, prompt)
        return explained(edited.method.router, edited.method.as_routed([prompt]), edits, most)


def recorded_model(store: EditStore) -> str:
    """The model that the ledger names, if it is at hand: a folder from elsewhere may not make a hub be asked."""
    name = store.header["base"].get("name")
    if name == PACKAGED or (isinstance(name, str) and Path(name).exists()):
        return name
    known = "does not name the model" if name is None else f'names the model "{name}", which is not a path here,'
    raise CorrigendaError(f"{store.ledger.name} {known} that its edits were written with: give --model.")


def explained(router: EditRouter, requests: Any, edits: list[Any], most: int = 5) -> dict[str, Any]:
    """The answer, from a router that knows `edits`, to one request in the form that it decides by.

    edit       the id of the applied edit
    score      of the best match, the first of `nearest`; of routers by keys that is the one with the nearest key, where
               one with a wider radius may have a higher score
    needed     the score from which that is applied: `threshold` + `rival_weight` * `runner_up`, the next best's score;
               or the score of the `withdrawn` edit
    margin     score - needed; an edit is applied where it is not below 0
    withdrawn  the id of the undone or unsolved edit that the prompt matches better, where that keeps one from applying
    undone     the undone or unsolved edit that comes nearest, whatever that means, with its score
    reason     what else keeps the best match from being applied, said of the prompt, of a router that knows

    From `explained_text` also `begun`: what the prompt has of the applied edit's answer, said of it; None for nothing.
    """
    query = router.queries(requests)
    decision = router.decide_queries(query)
    (route,), (nearest,), (score,), _, (margin,), (withdrawn,), (against,) = (part.tolist() for part in decision)
    scores = router.scores(query)
    best = scores.topk(max(0, min(most, len(edits)))).indices.tolist()
    if best and nearest >= 0 and nearest not in best:  # the nearest key decides, whatever another scores
        best[-1] = nearest
    places = sorted(best, key=lambda place: (place != nearest, -float(scores[place]), place))
    undone = None
    if router.withdrawn is not None:
        (place,), (likeness,) = (part.tolist() for part in router.nearest_withdrawn(query))
        undone = {"id": router.withdrawn.ids[place], "score": likeness}
    return {
        "edit": edits[route].id if route >= 0 else None,
        "withdrawn": router.withdrawn.ids[withdrawn] if withdrawn >= 0 else None,
        "score": score,
        "needed": score - margin,
        "margin": margin,
        "threshold": router.threshold,
        "rival_weight": router.rival_weight,
        "runner_up": float(scores.topk(2).values[1]) if len(scores) > 1 else 0.0,
        "undone": undone,
        "reason": router.in_words(against) if route < 0 else None,
        "nearest": [
            {
                "id": edits[place].id,
                "prompt": edits[place].prompt,
                "target": edits[place].target,
                "score": float(scores[place]),
                "applies": place == route,
            }
            for place in places
        ],
    }


def explained_text(
    router: EditRouter, prompts: PromptFormat, starts: AnswerStarts, prompt: str, edits: list[Any], most: int = 5
) -> dict[str, Any]:
    """The same of a prompt's text: as it is, where it has the format's closing and maybe a part of its answer."""
    whole = prompts.after_question(prompt)[0] != ""
    ids = prompts.encode(prompt if whole else prompts.wrap(prompt))
    found = explained(router, [prompts.question(ids)], edits, most)
    applied = next((edit for edit in edits if edit.id == found["edit"]), None)
    return {**found, "begun": None if applied is None else starts.in_words(ids, applied)}


def _by_memory(edited: EditedModel, prompt: str) -> dict[str, Any]:
    """The answer where edits share the memories that a prompt is answered from; scores are distances."""
    (source,) = provenance_of(edited.method.routes([prompt]), edited.method, edited.edits)
    found = {"edit": None, "memory": source.memory, "withdrawn": None, "score": source.score, "needed": source.needed}
    return {**found, "margin": source.margin, "threshold": source.needed, "undone": None, "nearest": []}


@contextlib.contextmanager
def _loaded(store: EditStore, name: str) -> Iterator[EditedModel]:
    """Within: the model with the edits of a store."""
    from .edited_model import EditedModel

    model, tokenizer = load_base(name)
    edited = EditedModel.from_pretrained(model, store.directory, tokenizer=tokenizer)
    try:
        yield edited
    finally:
        edited.detach()
