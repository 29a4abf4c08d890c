"""Settings that depend on the model: which layer, how many features, which threshold."""

from __future__ import annotations

import dataclasses
from typing import Any

from .config import AssociativeConfig, EditingConfig, MemoirConfig, WiseConfig
from .decoder import Decoder
from .errors import CorrigendaError

# For MEMOIR: (layers, FFN width) -> edited layer, top k, threshold, learning rate, as published for MEMOIR or used for
# WISE on these families (LLaMA-3-8B, Mistral-7B; LLaMA-2-7B).
_KNOWN: dict[tuple[int, int], tuple[int, int, float, float]] = {
    (32, 14336): (27, 4096, 0.4, 1.0),
    (32, 11008): (27, 4096, 0.5, 1.0),
    # SmolLM2-135M: of layers 24 to 28, layer 25 tells ZsRE's rephrasings best from unrelated questions (k = 256:
    # overlaps of .43 and more for 95 % of the first, .39 at most for the second). The narrower the masks, the less
    # edits disturb each other, and the longer the steps must be: after 100 edits Rel .78 and Gen .69 with k = 512 and a
    # learning rate of 1, .91 and .84 with 256 and 4.
    (30, 1536): (25, 256, 0.395, 4.0),
}

_WISE_PUBLISHED = {
    "learning_rate": 1.0,
    "steps": 70,
    "contexts": 11,
    "alpha": 5.0,
    "beta": 20.0,
    "gamma": 10.0,
    "margin_weight": 1.0,
    "irrelevant_prompts": 1,
    "spared": 0.0,
    "mask_ratio": 0.2,
    "merge_scale": 1.0,
    "distance_tokens": "row",
    "reduction": "published",
    "threshold_from": "edits",
    "act_ratio": 0.88,
}
"""For WISE, as published for LLaMA-2-7B, Mistral-7B and LLaMA-3.2-3B."""

# Where a model's published layer or settings differ: (model type, layers, FFN width, context) -> settings. A context
# of None is any: it tells LLaMA-3-8B from 3.1. LLaMA-3.2-3B is published at its last layer, 27, above which nothing
# would carry an edit on.
_WISE_KNOWN: dict[tuple[str, int, int, int | None], dict[str, Any]] = {
    ("llama", 32, 11008, None): {"layer": 27},
    ("mistral", 32, 14336, None): {"layer": 27},
    ("llama", 28, 8192, None): {"layer": 26},
    ("llama", 32, 14336, 8192): {
        **{"layer": 29, "learning_rate": 0.9, "steps": 30, "alpha": 2.0, "act_ratio": 0.5},
    },
    ("llama", 32, 14336, 131072): {
        **{"layer": 29, "learning_rate": 0.9, "steps": 30, "alpha": 5.0, "beta": 10.0, "gamma": 10.0},
    },
    # SmolLM2-135M, ZsRE. The margin's gradient is seven times the cross-entropy's, and at a learning rate that learns
    # an answer its steps overshoot: hence its weight. Inputs of unrelated prompts have most in common with those of
    # edits: after 30 edits under a mask of .2 Rel is .59 even without a threshold, and unrelated prompts are moved as
    # far as edits; with `spared`, all entries free and 8 steps, .97 to 1.00. A mask of .2 or .5 brings back, as noise,
    # what is spared. Told by the largest distance of a token, not the mean, 90 % of 40 rephrasings and not 70 % stand
    # above 99 % of unrelated prompts: names tell. A threshold that one edit in hundreds sets falls with their number:
    # of 20 shards of 25 edits each, thresholds from background prompts find 73 % where 17 % of unrelated questions are
    # answered too, and thresholds from the least distances 39 % where 18 % are (`bench/wise_thresholds.py`). After 100
    # edits in one shard 2 % of unrelated questions stand above 1.27 times the background's, in shards of 25 above 1.5
    # times. What merging by TIES costs is not a conflict but the mean, of which every edit has a share: without a
    # threshold, Rel .97 of four shards apart is .89 with each two merged and .67 with all four, and .98 and .95 with
    # twice the mean.
    ("llama", 30, 1536, None): {
        **{"layer": 24, "learning_rate": 6.0, "steps": 8, "margin_weight": 0.03, "spared": 3.0, "mask_ratio": 1.0},
        **{"contexts": 4, "distance_tokens": "prompt", "reduction": "max", "merge_scale": 2.0},
        **{"threshold_from": "background", "act_ratio": 1.27},
    },
}

_DEPTH: dict[type[EditingConfig], float] = {AssociativeConfig: 0.9, MemoirConfig: 27 / 32, WiseConfig: 27 / 32}
"""Edited layer as a share of the depth. Associative, CounterFact, 60 edits of SmolLM2-135M (30 layers): generality
.80 at layer 24, .87 at 26, .93 at 27 and 28; ZsRE is at 1.00 for all. MEMOIR and WISE: as published for 32 layers."""

_MASK_SHARE = 4096 / 14336
"""k as a share of the FFN width: that of LLaMA-3-8B."""

_ROUTER_DEPTH = 0.14
"""Layer of feature fingerprints, as a share of the depth: layer 4 of 30, where words still show."""


def resolved(config: EditingConfig, decoder: Decoder) -> EditingConfig:
    """`config` with every field that was left to the model filled in, and checked against the model."""
    depth = len(decoder)
    known = _KNOWN.get((depth, decoder.widths(0)[0]))
    wise = _wise_defaults(decoder) if isinstance(config, WiseConfig) else {}
    layer = config.layer if config.layer is not None else wise.pop("layer", None)
    if layer is None and known and isinstance(config, MemoirConfig):
        layer = known[0]
    elif layer is None:
        layer = max(min(int(_DEPTH[type(config)] * depth), depth - 2), 0)
    if not 0 <= layer < depth:
        raise CorrigendaError(f"Layer {layer} is out of range: this model has layers 0 to {depth - 1}.")
    if layer == depth - 1:
        raise CorrigendaError(
            f"Layer {layer} is the model's last, and no layer above it would carry the edit to later tokens; "
            f"choose one from 0 to {depth - 2}."
        )
    changes: dict[str, object] = {"layer": layer}
    if isinstance(config, AssociativeConfig) and config.router == "mask":
        router_layer = int(_ROUTER_DEPTH * depth) if config.router_layer is None else config.router_layer
        if not 0 <= router_layer <= layer:
            raise CorrigendaError(
                f"router_layer {router_layer} is out of range: features must come from layers 0 to {layer}, "
                "at or below the edited one."
            )
        changes["router_layer"] = router_layer
    fingerprint_layer = changes.get("router_layer", layer)
    if isinstance(config, MemoirConfig) or getattr(config, "router", None) == "mask":
        width = decoder.widths(fingerprint_layer)[0]
        top_k = config.top_k or (known[1] if known else round(_MASK_SHARE * width))
        if not 0 < top_k <= width:
            raise CorrigendaError(f"top_k {top_k} is out of range: the layer's features are {width} wide.")
        changes["top_k"] = top_k
    if isinstance(config, WiseConfig):
        changes.update((name, value) for name, value in wise.items() if getattr(config, name) is None)
        return dataclasses.replace(config, **changes)
    if config.threshold is None:
        changes["threshold"] = known[2] if known else "auto"
    if config.learning_rate is None:
        changes["learning_rate"] = known[3] if known else 1.0
    return dataclasses.replace(config, **changes)


def _wise_defaults(decoder: Decoder) -> dict[str, Any]:
    """WISE's settings for the model: what is published for all, then for its family and size."""
    config = decoder.model.config
    shape = (config.model_type, len(decoder), decoder.widths(0)[0])
    for context in (None, getattr(config, "max_position_embeddings", None)):
        if (*shape, context) in _WISE_KNOWN:
            return {**_WISE_PUBLISHED, **_WISE_KNOWN[*shape, context]}
    return dict(_WISE_PUBLISHED)
