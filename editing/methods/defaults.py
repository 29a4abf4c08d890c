"""What methods ask of a model when they fill in their defaults: which layer, how many features."""

from __future__ import annotations

from ..backbone.decoder import Decoder
from ..errors import CorrigendaError

_MASK_SHARE = 4096 / 14336
"""k as a share of the FFN width: that of LLaMA-3-8B."""

# By layers and FFN width: k as published for MEMOIR. SmolLM2-135M: the narrower the masks, the less edits disturb each
# other (after 100 edits of MEMOIR Rel .78 and Gen .69 with 512, .91 and .84 with 256 and longer steps).
_KNOWN_SIZE = {(32, 14336): 4096, (32, 11008): 4096, (30, 1536): 256}


def edited_layer(layer: int | None, depth: float, decoder: Decoder) -> int:
    """The layer that was chosen, or the one at `depth` as a share of the model's; checked against the model."""
    layers = len(decoder)
    if layer is None:
        layer = max(min(int(depth * layers), layers - 2), 0)
    if not 0 <= layer < layers:
        raise CorrigendaError(f"Layer {layer} is out of range: this model has layers 0 to {layers - 1}.")
    if layer == layers - 1:
        raise CorrigendaError(
            f"Layer {layer} is the model's last, and no layer above it would carry the edit to later tokens; "
            f"choose one from 0 to {layers - 2}."
        )
    return layer


def mask_size(top_k: int | None, layer: int, decoder: Decoder) -> int:
    """How many features a fingerprint keeps of a layer's: as chosen, as known for the model, or LLaMA-3-8B's share."""
    width = decoder.widths(layer)[0]
    top_k = top_k or _KNOWN_SIZE.get((len(decoder), decoder.widths(0)[0]), round(_MASK_SHARE * width))
    if not 0 < top_k <= width:
        raise CorrigendaError(f"top_k {top_k} is out of range: the layer's features are {width} wide.")
    return top_k
