"""GRACE's settings that depend on the model."""

from __future__ import annotations

import dataclasses

from ...backbone.decoder import Decoder
from ..defaults import edited_layer
from .config import GraceConfig

_DEPTH = 27 / 32
"""Edited layer as a share of the depth: as published for LLaMA-2-7B."""

_RADIUS = 1.0


def resolved(config: GraceConfig, decoder: Decoder) -> GraceConfig:
    """`config` with every field that was left to the model filled in, and checked against the model."""
    layer = edited_layer(config.layer, _DEPTH, decoder)
    return dataclasses.replace(config, layer=layer, radius=_RADIUS if config.radius is None else config.radius)
