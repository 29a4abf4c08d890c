"""How full an edited model is: whether the router still finds the edits, and how much the memory holds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from ..backbone.background import background_prompts

if TYPE_CHECKING:
    from ..methods.method import Method
    from .edited_model import EditedModel


@torch.no_grad()
def report(edited: EditedModel) -> dict[str, Any]:
    """The state of router and memory, from the stored prompts, their rephrasings and the background prompts.

    hit_rate           share of stored prompts that reach their own edit, or the memory that holds it; `_rephrased`: of
                       their rephrasings
    margin_p05, _p50   of those prompts, how far the match stands above the threshold
    misfires           share of background prompts that some edit is applied to
    background_p99     their best scores, to be seen beside the threshold
    collisions         edits whose own prompt another edit answers or that share a best score with one
    norm               of the memory; `norm_per_edit` its root mean square over edits
    """
    edits = edited.edits
    found: dict[str, Any] = {"edits": len(edits)}
    if not edits:
        return found
    method, router = edited.method, edited.method.router
    own = method.routes([edit.prompt for edit in edits])
    rephrased = [(place, text) for place, edit in enumerate(edits) for text in edit.rephrases]
    background = method.routes(background_prompts())
    margin = own.margin
    found |= {
        "threshold": router.threshold,
        "hit_rate": _share_held(method, enumerate(own.route.tolist())),
        "hit_rate_rephrased": None,
        "margin_p05": float(margin.quantile(0.05)),
        "margin_p50": float(margin.quantile(0.5)),
        "misfires": float((background.route >= 0).float().mean()),
        "background_p99": float(background.score.float().quantile(0.99)),
        "collisions": None,
    }
    if method.names_edits:
        others = own.nearest.cpu() != torch.arange(len(edits), dtype=torch.int64, device="cpu")
        found["collisions"] = int((others | (own.runner_up >= own.score).cpu()).sum())
    if rephrased:
        routes = method.routes([text for _, text in rephrased]).route.tolist()
        found["hit_rate_rephrased"] = _share_held(method, zip([place for place, _ in rephrased], routes))
    return found | method.memory.norms()


def _share_held(method: Method, routes: Iterable[tuple[int, int]]) -> float:
    """How often a prompt about the edit at a place has a route that answers for it."""
    held = [method.holds(route, place) for place, route in routes]
    return sum(held) / len(held)
