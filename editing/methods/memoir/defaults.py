"""MEMOIR's settings that depend on the model."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from ...backbone.decoder import Decoder
from ..defaults import edited_layer, mask_size
from .config import MemoirConfig


class _Known(NamedTuple):
    layer: int | None
    threshold: float | str
    learning_rate: float


# By layers and FFN width, as published for MEMOIR or used for WISE on these families (LLaMA-3-8B, Mistral-7B;
# LLaMA-2-7B).
_KNOWN: dict[tuple[int, int], _Known] = {
    (32, 14336): _Known(27, 0.4, 1.0),
    (32, 11008): _Known(27, 0.5, 1.0),
    # SmolLM2-135M: of layers 24 to 28, layer 25 tells ZsRE's rephrasings best from unrelated questions (k = 256:
    # overlaps of .43 and more for 95 % of the first, .39 at most for the second). Narrow masks
    # want longer steps: after 100 edits Rel .78 and Gen .69 with k = 512 and a rate of 1, .91 and .84 with 256 and 4.
    (30, 1536): _Known(25, 0.395, 4.0),
}

_OTHERS = _Known(None, "auto", 1.0)

_DEPTH = 27 / 32
"""Edited layer as a share of the depth: as published for 32 layers."""


def resolved(config: MemoirConfig, decoder: Decoder) -> MemoirConfig:
    """`config` with every field that was left to the model filled in, and checked against the model."""
    known = _KNOWN.get((len(decoder), decoder.widths(0)[0]), _OTHERS)
    layer = edited_layer(known.layer if config.layer is None else config.layer, _DEPTH, decoder)
    return dataclasses.replace(
        config,
        layer=layer,
        top_k=mask_size(config.top_k, layer, decoder),
        threshold=known.threshold if config.threshold is None else config.threshold,
        learning_rate=known.learning_rate if config.learning_rate is None else config.learning_rate,
    )
