"""Whether a model can be edited at a layer: its forward taken apart there, and gradients through what is above."""

from __future__ import annotations

import torch

from ..errors import CorrigendaError
from .decoder import Decoder
from .frozen import Row, frozen_features
from .modes import frozen, own_modes
from .suffix import Suffix, suffix_of

_PROMPT, _LABELS = 16, 4
"""Tokens of the row that gradients are tried on."""

_CHANGE = 0.02
"""By which share a step is to lower the loss."""


def check_decoder(decoder: Decoder, layer: int) -> None:
    """Raise where an edit at the layer could not be solved, before anything is written.

    The logits of a short sequence, with a disturbance added to the output of the layer's down-projection, must be the
    same by the model's own forward and by its parts (`Decoder.is_plain`), and a step along the gradient must lower a
    loss by what it says: quantised layers may give none, or another one.
    """
    decoder.is_plain(layer)
    name = type(decoder.model).__name__
    try:
        with own_modes(decoder.model, gradients=True), frozen(decoder.model):
            kept = _kept_promise(_short_row(decoder, layer))
    except Exception as error:  # whatever a library's layers do when they are asked for a gradient
        reason = str(error).strip().splitlines()
        raise CorrigendaError(
            f"{name} cannot be edited: no gradient comes through the layers above layer {layer} "
            f"({type(error).__name__}: {reason[0].rstrip('.:') if reason else ''}); load it without this quantisation."
        ) from error
    if not 0.2 < kept < 5:
        raise CorrigendaError(
            f"{name} cannot be edited: gradients through the layers above layer {layer} are wrong (a step along them "
            f"changes a loss by {kept:.2g} of what they say); load it without this quantisation."
        )


def _short_row(decoder: Decoder, layer: int) -> Suffix:
    vocabulary = decoder.model.get_input_embeddings().weight.shape[0]
    tokens = torch.linspace(0, vocabulary - 1, _PROMPT + _LABELS, dtype=torch.float64, device="cpu").long().tolist()
    row = Row(tuple(tokens[:_PROMPT]), tuple(tokens[_PROMPT:]))
    (features,) = frozen_features(decoder, layer, [row.tokens])
    return suffix_of(decoder, layer, [features.hidden], [row], [_PROMPT - 1])


def _kept_promise(suffix: Suffix) -> float:
    """By how much of what the gradient says a small step along it lowers the loss."""
    shape = len(suffix.touched), suffix.hidden.shape[-1]
    delta = torch.zeros(shape, dtype=torch.float32, device=suffix.hidden.device, requires_grad=True)
    loss = suffix.losses(delta).sum()
    (gradient,) = torch.autograd.grad(loss, delta)
    square = float(gradient.square().sum())
    wanted = _CHANGE * float(loss.detach())
    if not square > 0:
        return 0.0
    with torch.no_grad():
        return (float(loss) - float(suffix.losses(-wanted / square * gradient).sum())) / wanted
