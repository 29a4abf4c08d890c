"""UltraEdit's settings that depend on the model: as published, or ours for SmolLM2."""

from __future__ import annotations

from typing import Any

from ...backbone.decoder import Decoder
from ...errors import CorrigendaError
from ..defaults import edited_layer
from ..weights.defaults import filled
from .config import UltraEditConfig

_PUBLISHED: dict[str, Any] = {"learning_rate": 1e-6}

_KNOWN: dict[tuple[str, int, int], dict[str, Any]] = {
    ("mistral", 32, 14336): {"modules": "down_proj:29-30"},
    ("llama", 32, 14336): {"modules": "gate_proj:11-15,up_proj:18-24"},
    # SmolLM2-135M: with the published rate nothing is learnt; of 1e-6, 1e-3, 4e-3, 1e-2 and .1, after 10 edits of ZsRE
    # (the half that is not reported), 4e-3 has Rel 1.00, Gen .92 and Loc .65, 1e-2 Rel and Gen 1.00 at Loc .39.
    ("llama", 30, 1536): {"learning_rate": 4e-3},
}


def resolved(config: UltraEditConfig, decoder: Decoder) -> UltraEditConfig:
    """`config` with every field that was left to the model filled in, and checked against the model."""
    published = dict(_PUBLISHED)
    layers = len(decoder)
    published["modules"] = f"down_proj:{max(1, layers - 3)}-{max(1, layers - 2)}"  # as on Mistral
    found = filled(config, decoder, published, _KNOWN)
    lowest, highest = found.places[0][0], found.places[-1][0]
    if lowest < 1 or highest >= layers:
        raise CorrigendaError(f'modules "{found.modules}" are out of range: layers are 1 to {layers - 1} here.')
    found.layer = edited_layer(min(highest, layers - 2), 0.9, decoder)
    return found
