"""Changed weights as a plain model, which any stack loads and no edit can be taken out of."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from ..backbone.background import background_prompts
from ..backbone.frozen import padded_ids
from ..backbone.loading import load_base
from ..backbone.model_folder import write_folder
from ..backbone.modes import own_modes
from ..errors import CorrigendaError
from ..methods.weights.method import WeightMethod
from ..store.files import refuse_non_empty
from .edited_model import EditedModel

_ASKED = 8
"""Prompts, of the edits and of the background each, on which the written model is compared with the edited one."""

_LARGEST = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""By which share of their norm logits may differ: a sum that was added to an output is rounded into weights."""


def bake(edited: EditedModel, directory: str | Path) -> float:
    """Write the model with W0 + sum in its weights into a new folder; by how much of their norm logits differ then.

    The folder is there only if the model in it, read again, answers as the edited one. Raises CorrigendaError where the
    method's edits are no change of weights for every request, or where the layers' weights are quantised or adapted.
    """
    method, path = edited.method, Path(directory)
    if not isinstance(method, WeightMethod) or not method.bakeable:
        raise CorrigendaError(
            f"Edits of the method {edited.config.method} answer only requests that are routed to them, which no plain "
            "model does: bake edits of one that changes weights for every request (rome, memit, ft-m, ...)."
        )
    if method.names_edits:
        raise CorrigendaError(
            f'These edits are gated by a router (router="{method.config.router}"), which no plain model has: write '
            'them with router="none" to bake them.'
        )
    if not edited.edits:
        raise CorrigendaError("There are no edits to bake.")
    refuse_non_empty(path)
    weights = _changed(edited, method)
    rows = _rows(edited)
    expected = _edited_logits(edited, rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    try:
        write_folder(edited.decoder.model, weights, edited.tokenizer, staging)
        difference = _difference(staging, rows, expected, edited)
        if path.exists():
            path.rmdir()
        staging.rename(path)
    except OSError as error:
        raise CorrigendaError(f"The model cannot be written to {path}: {error.strerror}.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return difference


@torch.no_grad()
def _changed(edited: EditedModel, method: WeightMethod) -> dict[str, Tensor]:
    """The model's weights by name, those of edited maps with their change."""
    model = edited.decoder.model
    names = {id(module): name for name, module in model.named_modules()}
    weights = dict(model.state_dict())
    for site, module in method.modules.items():
        weight = getattr(module, "weight", None)
        if type(module) is not nn.Linear or weight is None or not weight.is_floating_point():
            raise CorrigendaError(
                f"{site} is a {type(module).__name__}, not plain weights that a change could be added to: load the "
                "model without quantisation and adapters to bake it."
            )
        change = method.memory.matrices[site].T
        weights[f"{names[id(module)]}.weight"] = (weight.float() + change).to(weight.dtype)
    return weights


def _rows(edited: EditedModel) -> list[list[int]]:
    """Prompts of edits and of none, with a target behind the first."""
    own = [(edit.prompt, edit.target) for edit in edited.edits[:_ASKED]]
    rows = [list(itertools.chain(*edited.prompts.encode_with_target(*pair))) for pair in own]
    return rows + [edited.prompts.encode(edited.prompts.wrap(text)) for text in background_prompts()[:_ASKED]]


@torch.no_grad()
def _edited_logits(edited: EditedModel, rows: list[list[int]]) -> Tensor:
    ids = padded_ids(rows, edited.decoder.device(0))
    lengths = [len(row) for row in rows]
    with edited.teacher_forcing(ids, lengths, lengths):
        return edited.model(input_ids=ids, use_cache=False).logits.float().cpu()


@torch.no_grad()
def _difference(folder: Path, rows: list[list[int]], expected: Tensor, edited: EditedModel) -> float:
    """How far the written model's logits are from the edited one's, at the rows' tokens; raises where it is too far."""
    weight = edited.decoder.model.get_input_embeddings().weight
    model, _ = load_base(folder, device=str(weight.device), dtype=weight.dtype)
    ids = padded_ids(rows, weight.device)
    with own_modes(model):
        found = model(input_ids=ids, use_cache=False).logits.float().cpu()
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64, device="cpu")
    real = torch.arange(ids.shape[1], dtype=torch.int64, device="cpu") < lengths[:, None]
    difference = float((found - expected)[real].norm() / expected[real].norm())
    if not difference <= _LARGEST.get(weight.dtype, 0.1):
        raise CorrigendaError(
            f"The baked model was not kept: its logits differ from the edited model's by {difference:.2g} of their "
            "norm; bake it in float32."
        )
    return difference
