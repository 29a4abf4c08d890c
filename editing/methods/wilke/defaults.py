"""WilKE's settings that depend on the model: ROME's, tried up to half of the depth."""

from __future__ import annotations

from ...backbone.decoder import Decoder
from ...errors import CorrigendaError
from ..defaults import edited_layer
from ..rome.defaults import KNOWN, PUBLISHED
from ..weights.defaults import filled
from .config import WilkeConfig

_DEPTH = 0.5


def resolved(config: WilkeConfig, decoder: Decoder) -> WilkeConfig:
    """`config` with every field that was left to the model filled in, and checked against the model."""
    chosen = config.layer
    found = filled(config, decoder, PUBLISHED, KNOWN)
    found.layer = edited_layer(chosen, _DEPTH - 1 / len(decoder), decoder)
    if found.first_layer > found.layer:
        raise CorrigendaError(f"first_layer {found.first_layer} is out of range: it is 0 to `layer`, {found.layer}.")
    return found
