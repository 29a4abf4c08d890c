"""How full an edited model is: whether the router still finds the edits, and how much the memory holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .background import background_prompts
from .memory import SharedMatrix
from .routing import Decision

if TYPE_CHECKING:
    from .model import EditedModel


@torch.no_grad()
def report(edited: EditedModel) -> dict[str, Any]:
    """The state of router and memory, from the stored prompts, their rephrasings and the background prompts.

    hit_rate           share of stored prompts that reach their own edit; `_rephrased`: of their rephrasings
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
    router = edited.method.router
    own = _asked(edited, [edit.prompt for edit in edits])
    places = torch.arange(len(edits))
    rephrased = [(place, text) for place, edit in enumerate(edits) for text in edit.rephrases]
    background = _asked(edited, background_prompts())
    margin = router.margin(own).float()
    found |= {
        "threshold": router.threshold,
        "hit_rate": float((own.route.cpu() == places).float().mean()),
        "hit_rate_rephrased": None,
        "margin_p05": float(margin.quantile(0.05)),
        "margin_p50": float(margin.quantile(0.5)),
        "misfires": float((background.route >= 0).float().mean()),
        "background_p99": float(background.score.float().quantile(0.99)),
        "collisions": int(((own.nearest.cpu() != places) | (own.runner_up >= own.score).cpu()).sum()),
    }
    if rephrased:
        routes = _asked(edited, [text for _, text in rephrased]).route.cpu()
        wanted = torch.tensor([place for place, _ in rephrased])
        found["hit_rate_rephrased"] = float((routes == wanted).float().mean())
    return found | _norms(edited)


def _asked(edited: EditedModel, prompts: Sequence[str]) -> Decision:
    """What the router decides about prompts, as `generate` would ask them."""
    method = edited.method
    ids = [edited.prompts.encode(edited.prompts.wrap(prompt)) for prompt in prompts]
    known = method.decide(ids)
    return method.router.decide(method.fingerprints(prompts)) if known is None else known


def _norms(edited: EditedModel) -> dict[str, Any]:
    memory = edited.method.memory
    if isinstance(memory, SharedMatrix):
        rows = memory.weight.norm(dim=1)
        used = rows > 0
        return {
            "norm": float(rows.norm()),
            "rows_used": float(used.float().mean()),
            "largest_row": float(rows.max()),
        }
    norms: list[Tensor] = [memory.rows_of(place)[1].float().norm() for place in range(memory.size)]
    values = torch.stack(norms)
    return {
        "norm": float(values.norm()),
        "norm_per_edit": float(values.square().mean().sqrt()),
        "largest_edit": float(values.max()),
        "bytes": sum(part.nbytes for place in range(memory.size) for part in memory.rows_of(place)),
    }
