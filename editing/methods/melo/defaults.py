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

# By layers and FFN width: the router's layer and the radius. SmolLM2-135M, ZsRE in a template, 60 edits: at layer 24 a
# rephrasing is 8.5 from its edit's key (95 %: 14.6), the nearest other edit 14.2 (5 %: 11.3), an unrelated question
# 15.5 (5 %: 12.7); of layers 18, 21 and 24 it names most rephrasings right, .95 (.63 at 21, GPT2-XL's share).
_KNOWN = {(30, 1536): (24, 10.0)}


def resolved(config: MeloConfig, decoder: Decoder) -> MeloConfig:
    """`config` with every field that was left to the model filled in, and checked against the model."""
    layers, most = len(decoder), len(decoder) - 1 - config.adapted_layers
    known = (min(int(_DEPTH * layers), most), _RADIUS)
    layer, radius = _KNOWN.get((layers, decoder.widths(0)[0]), known)
    layer = layer if config.layer is None else config.layer
    if not 0 <= layer <= most:
        raise CorrigendaError(
            f"Layer {layer} is out of range: with {config.adapted_layers} adapted layers above it, this model's router "
            f"may be at layers 0 to {most}."
        )
    return dataclasses.replace(
        config,
        layer=layer,
        radius=radius if config.radius is None else config.radius,
        scale=_SCALE if config.scale is None else config.scale,
    )
