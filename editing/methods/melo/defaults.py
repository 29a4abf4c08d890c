"""MELO's settings that depend on the model."""

from __future__ import annotations

import dataclasses

from ...backbone.decoder import Decoder
from ...errors import CorrigendaError
from .config import MeloConfig

_DEPTH = 35 / 48
"""The router's layer as a share of the depth: as published for GPT2-XL."""

_RADIUS, _SCALE = 0.5, 20.0
"""GPT2-XL's radius, and T5's number of blocks: GPT2-XL's, 350, is for its 350 blocks."""


def resolved(config: MeloConfig, decoder: Decoder) -> MeloConfig:
    """`config` with every field that was left to the model filled in, and checked against the model."""
    layers, most = len(decoder), len(decoder) - 1 - config.adapted_layers
    layer = min(int(_DEPTH * layers), most) if config.layer is None else config.layer
    if not 0 <= layer <= most:
        raise CorrigendaError(
            f"Layer {layer} is out of range: with {config.adapted_layers} adapted layers above it, this model's router "
            f"may be at layers 0 to {most}."
        )
    return dataclasses.replace(
        config,
        layer=layer,
        radius=_RADIUS if config.radius is None else config.radius,
        scale=_SCALE if config.scale is None else config.scale,
    )
