"""CoachHooK's settings that depend on the model: MEMIT's."""

from __future__ import annotations

from ...backbone.decoder import Decoder
from ..memit.defaults import KNOWN, PUBLISHED, with_layers
from ..weights.defaults import filled
from .config import CoachHookConfig


def resolved(config: CoachHookConfig, decoder: Decoder) -> CoachHookConfig:
    """`config` with every field that was left to the model filled in, and checked against the model."""
    return with_layers(filled(config, decoder, PUBLISHED, KNOWN), decoder)
