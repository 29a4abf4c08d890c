"""The associative method's settings that depend on the model."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...backbone.decoder import Decoder
from ...errors import CorrigendaError
from ..defaults import edited_layer, mask_size
from .config import AssociativeConfig

_DEPTH = 0.9
"""Edited layer as a share of the depth. CounterFact, 60 edits of SmolLM2-135M (30 layers): generality .80 at layer 24,
.87 at 26, .93 at 27 and 28; ZsRE is at 1.00 for all."""

_ROUTER_DEPTH = 0.14
"""Layer of feature fingerprints, as a share of the depth: layer 4 of 30, where words still show."""


def resolved(config: AssociativeConfig, decoder: Decoder) -> AssociativeConfig:
    """`config` with every field that was left to the model filled in, and checked against the model."""
    layer = edited_layer(config.layer, _DEPTH, decoder)
    changes: dict[str, Any] = {"layer": layer}
    if config.router == "mask":
        router_layer = int(_ROUTER_DEPTH * len(decoder)) if config.router_layer is None else config.router_layer
        if not 0 <= router_layer <= layer:
            raise CorrigendaError(
                f"router_layer {router_layer} is out of range: features must come from layers 0 to {layer}, "
                "at or below the edited one."
            )
        changes |= {"router_layer": router_layer, "top_k": mask_size(config.top_k, router_layer, decoder)}
    if config.threshold is None:
        changes["threshold"] = "auto"
    return dataclasses.replace(config, **changes)
