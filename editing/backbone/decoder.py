"""A causal language model seen as embedding, layers, final norm and head: what writing an edit needs of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..errors import CorrigendaError
from .head import label_losses
from .last_layer import LabelPositions, layer_at
from .wrappers import unwrapped


class Decoder:
    """The parts of a decoder-only model, found by structure (`layers[i].mlp.down_proj`); no weight is copied.

    `model` is what is inside the wrappers that the given one may have.
    """

    def __init__(self, model: nn.Module) -> None:
        model = unwrapped(model)
        body = model.get_decoder() if hasattr(model, "get_decoder") else getattr(model, "model", None)
        self.model = model
        self.body = body
        self.layers = getattr(body, "layers", None)
        self.head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        for part, found in {
            "a list of decoder `layers`": isinstance(self.layers, nn.ModuleList) and len(self.layers) > 0,
            "`mlp.down_proj` in every layer": all(
                isinstance(getattr(getattr(layer, "mlp", None), "down_proj", None), nn.Module)
                for layer in self.layers or [None]
            ),
            "a final `norm`": hasattr(body, "norm"),
            "rotary position embeddings (`rotary_emb`)": hasattr(body, "rotary_emb"),
            "an output head": self.head is not None,
        }.items():
            if not found:
                raise CorrigendaError(
                    f"{type(model).__name__} cannot be edited: {part} could not be found in it; "
                    "Corrigenda needs a LLaMA-like decoder whose layers have mlp.down_proj."
                )

    def __len__(self) -> int:
        return len(self.layers)

    def down_proj(self, layer: int) -> nn.Module:
        """The FFN down-projection of `layer`, patched or not."""
        return self.layers[layer].mlp.down_proj

    def widths(self, layer: int) -> tuple[int, int]:
        """Input width D and output width d of that layer's down-projection."""
        module = self.down_proj(layer)
        if hasattr(module, "in_features") and hasattr(module, "out_features"):
            return module.in_features, module.out_features
        raise CorrigendaError(
            f"The down_proj of layer {layer} is a {type(module).__name__}, which does not tell its width; "
            "load the model without this quantisation."
        )

    def device(self, layer: int) -> torch.device:
        """Where the layer's weights are, and so where its memory must be."""
        return next(self.layers[layer].parameters()).device

    def embed(self, tokens: Tensor) -> Tensor:
        """Token embeddings `[rows, length, d]` of `[rows, length]` ids."""
        embedding = self.model.get_input_embeddings()
        return embedding(tokens.to(embedding.weight.device))

    def run(
        self,
        hidden: Tensor,
        first: int,
        last: int,
        positions: Tensor,
        mask: Tensor,
        cache: object | None = None,
        angles: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Layers `first` up to `last` of `hidden` `[rows, length, d]`, `mask` additive `[rows|1, 1, length, keys]`.

        angles: those of the positions, where they are known.
        """
        if first < last:
            hidden = hidden.to(self.device(first))
        if angles is None:
            angles = self.angles(hidden, positions)
        for layer in self.layers[first:last]:
            hidden = layer(
                hidden,
                attention_mask=mask.to(hidden.device),
                position_ids=positions.to(hidden.device),
                position_embeddings=angles,
                past_key_values=cache,
                use_cache=cache is not None,
            )
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        return hidden

    def angles(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary cosines and sines of `positions` `[rows|1, length]`, in the dtype and on the device of `hidden`."""
        return self.body.rotary_emb(hidden, positions.to(hidden.device))

    def last_layer_at(self, hidden: Tensor, asked: LabelPositions) -> Tensor:
        """The last layer's output `[asked tokens, d]` at the asked positions; see `layer_at`."""
        return layer_at(self.layers[-1], hidden.to(self.device(len(self) - 1)), asked)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits, fp32, of hidden states that have passed the last layer."""
        return self.head(self.body.norm(hidden)).float()

    def label_losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the labels, fp32 `[labels]`, given what the last layer made where they are predicted."""
        hidden = self.body.norm(hidden)
        return label_losses(self.head, hidden, labels.to(hidden.device))

    @contextlib.contextmanager
    def masked_attention(self) -> Iterator[None]:
        """Within: an attention implementation that takes additive 4-D masks (flash attention takes none)."""
        config = self.model.config
        implementation = config._attn_implementation
        config._attn_implementation = implementation if implementation in ("sdpa", "eager") else "sdpa"
        try:
            yield
        finally:
            config._attn_implementation = implementation


def causal_mask(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Additive causal mask `[1, 1, length, length]`; right-padded rows need no more, for padding comes last."""
    blocked = torch.full((length, length), torch.finfo(dtype).min, dtype=dtype, device=device)
    return blocked.triu(1)[None, None]


def mask_after(starts: Tensor, cached: int, length: int, dtype: torch.dtype) -> Tensor:
    """Additive mask `[rows|1, 1, length, cached + length]` of rows after the first `starts[i]` of `cached` tokens."""
    causal = causal_mask(length, dtype, starts.device)
    if not cached:
        return causal
    unseen = torch.arange(cached, dtype=torch.int64, device=starts.device) >= starts[:, None]
    before = torch.zeros(unseen.shape, dtype=dtype, device=starts.device)
    before.masked_fill_(unseen, torch.finfo(dtype).min)
    rows = len(starts)
    return torch.cat([before[:, None, None].expand(-1, 1, length, -1), causal.expand(rows, -1, -1, -1)], 3)


@torch.no_grad()
def check_decoder(decoder: Decoder, layer: int) -> None:
    """Raise where the model is not the plain residual stack that writing assumes.

    The logits of a short sequence, with a disturbance added to the output of the layer's down-projection, must be the
    same by the model's own forward and by `Decoder`. Models that norm the FFN's output or scale their logits fail it.
    """
    device = decoder.model.get_input_embeddings().weight.device
    vocabulary = decoder.model.get_input_embeddings().weight.shape[0]
    tokens = torch.arange(8, dtype=torch.int64, device=device)[None] % vocabulary
    width = decoder.widths(layer)[1]
    disturbance = torch.linspace(-1, 1, width, dtype=torch.float32, device=decoder.device(layer))
    module = decoder.down_proj(layer)
    handle = module.register_forward_hook(lambda _module, _args, out: out + disturbance.to(out.dtype))
    try:
        expected = decoder.model(input_ids=tokens, use_cache=False).logits.float()
    finally:
        handle.remove()
    positions = torch.arange(tokens.shape[1], dtype=torch.int64, device=device)[None]
    dtype = decoder.model.get_input_embeddings().weight.dtype
    with decoder.masked_attention():
        mask = causal_mask(tokens.shape[1], dtype, device)
        hidden = decoder.run(decoder.embed(tokens), 0, layer + 1, positions, mask)
        hidden = hidden + disturbance.to(hidden)
        actual = decoder.logits(decoder.run(hidden, layer + 1, len(decoder), positions, mask))
    error = (actual - expected.to(actual.device)).norm() / expected.norm()
    # Half precision reorders sums: SmolLM2 in bf16 differs by 0.01 here, a model that scales its logits by 0.5 or more.
    if not error < 0.05:
        raise CorrigendaError(
            f"{type(decoder.model).__name__} cannot be edited: its forward is not a plain residual stack of decoder "
            f"layers, final norm and head (logits differ by {error:.0%} when rebuilt from these parts)."
        )
