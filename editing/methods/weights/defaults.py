"""How methods that change weights fill in what was left to the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from ...backbone.decoder import Decoder
from .config import WeightsConfig

Config = TypeVar("Config", bound=WeightsConfig)


def filled(
    config: Config,
    decoder: Decoder,
    published: Mapping[str, Any],
    known: Mapping[tuple[str, int, int], Mapping[str, Any]],
) -> Config:
    """`config` with what is None as `published`, or as `known` for (model type, layers, FFN width)."""
    shape = (decoder.model.config.model_type, len(decoder), decoder.widths(0)[0])
    defaults = {**published, **known.get(shape, {})}
    if config.routed_by_text and config.threshold is None:
        defaults["threshold"] = "auto"
    return dataclasses.replace(
        config, **{name: value for name, value in defaults.items() if getattr(config, name) is None}
    )
