"""A causal language model seen as embedding, layers, final norm and head: what writing an edit needs of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CorrigendaError
from .head import label_losses
from .last_layer import LabelPositions, keys_and_values, knows, layer_at
from .modes import own_modes
from .own_forward import OwnForward, own_logits
from .parts import parts_of
from .wrappers import unwrapped

_TOKENS = 24
"""In the sequence by which a model is checked."""


class Decoder:
    """The parts of a decoder-only model, found by structure (`layers[i].mlp.down_proj`); no weight is copied.

    `model` is what is inside the wrappers that the given one may have. `parts`: the processes that it is split over.
    """

    def __init__(self, model: nn.Module) -> None:
        model = unwrapped(model)
        body = model.get_decoder() if hasattr(model, "get_decoder") else getattr(model, "model", None)
        self.model = model
        self.parts = parts_of(model)
        self.body = body
        self._plain: dict[int, bool] = {}
        self.layers = getattr(body, "layers", None)
        self.head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        for part, found in {
            "a list of decoder `layers`": isinstance(self.layers, nn.ModuleList) and len(self.layers) > 0,
            "`mlp.down_proj` in every layer": all(
                isinstance(getattr(getattr(layer, "mlp", None), "down_proj", None), nn.Module)
                for layer in self.layers or [None]
            ),
            "a final `norm`": hasattr(body, "norm"),
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

    def whole_inputs(self, layer: int, x: Tensor) -> Tensor:
        """`[..., D]` of what that layer's down-projection takes in, of which each process may have a part."""
        return x if self.parts is None else self.parts.whole(x, self.widths(layer)[0])

    def device(self, layer: int) -> torch.device:
        """Where the layer's weights are, and so where its memory must be."""
        return next(self.layers[layer].parameters()).device

    def check_lengths(self, rows: Sequence[Sequence[int]], new: Sequence[int]) -> None:
        """Raise where a tokenised prompt and its `new` tokens are more than the model's context."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        for number, (row, more) in enumerate(zip(rows, new), start=1):
            if limit is not None and len(row) + more > limit:
                raise CorrigendaError(
                    f"Prompt {number} has {len(row)} tokens; with {more} new ones it exceeds the model's context of "
                    f"{limit}: shorten it, or ask for fewer."
                )

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

    def keep(self, hidden: Tensor, first: int, positions: Tensor, mask: Tensor, cache: Any) -> None:
        """Have the cache record layers `first` and above of `hidden`, as `run` would, of which no output is needed."""
        last, final = self.layers[-1], len(self) - 1
        if not knows(last):
            self.run(hidden, first, len(self), positions, mask, cache)
            return
        hidden = self.run(hidden, first, final, positions, mask, cache).to(self.device(final))
        cache.update(*keys_and_values(last, hidden, self.angles(hidden, positions)), last.self_attn.layer_idx)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits, fp32, of hidden states that have passed the last layer."""
        return self.head(self.body.norm(hidden)).float()

    def label_losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the labels, fp32 `[labels]`, given what the last layer made where they are predicted."""
        hidden = self.body.norm(hidden)
        return label_losses(self.head, hidden, labels.to(hidden.device))

    def is_plain(self, layer: int) -> bool:
        """Whether the model is a plain residual stack, which takes less to run from `layer` on than its own forward.

        Else that is interrupted at the layer (`OwnForward`): models that norm what attention or FFN give, scale
        residuals or logits, or have several rotary embeddings or kinds of layer. Raises where it cannot be.
        """
        if layer not in self._plain:
            self._plain[layer] = self._find_out(layer)
        return self._plain[layer]

    def runs_plainly(self, layer: int, longest: int) -> bool:
        """Whether rows of up to `longest` tokens are run as through a plain stack, in which no window is narrower."""
        window = getattr(self.model.config, "sliding_window", None)
        return self.is_plain(layer) and not (window and longest > window)

    def _find_out(self, layer: int) -> bool:
        # Half precision reorders sums: SmolLM2 in bf16 differs by 0.01, in fp32 by 1e-6; the wrong rotary angles in a
        # model with two kinds of them by 0.03 and more.
        largest = 1e-3 if self.model.get_input_embeddings().weight.dtype == torch.float32 else 0.05
        with own_modes(self.model), contextlib.suppress(Exception):
            if _error(self, layer, _plain_logits) < largest:
                return True
        name, reason = type(self.model).__name__, ""
        try:
            with own_modes(self.model):
                error = _error(self, layer, _own_logits)
            if error < largest:
                return False
            reason = f"logits differ by {error:.0%}"
        except Exception as error:  # whatever a model does that nobody has thought of
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        raise CorrigendaError(
            f"{name} cannot be edited: its forward cannot be taken apart at the down-projection of layer {layer} "
            f"({reason.rstrip(' .:')})."
        )

    def own_logits(self, hidden: Tensor, form: Any) -> Tensor:
        """Logits `[tokens, vocabulary]` of `[tokens, d]` from the last layer, by the model's own forward of them."""
        return own_logits(self.model, self.layers, hidden, form)

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


def _plain_logits(decoder: Decoder, layer: int, tokens: Tensor, disturbance: Tensor) -> Tensor:
    """By a plain residual stack of decoder layers, final norm and head."""
    positions = torch.arange(tokens.shape[1], dtype=torch.int64, device=tokens.device)[None]
    dtype = decoder.model.get_input_embeddings().weight.dtype
    with decoder.masked_attention():
        mask = causal_mask(tokens.shape[1], dtype, tokens.device)
        hidden = decoder.run(decoder.embed(tokens), 0, layer + 1, positions, mask)
        hidden = hidden + disturbance.to(hidden)
        return decoder.logits(decoder.run(hidden, layer + 1, len(decoder), positions, mask))


def _own_logits(decoder: Decoder, layer: int, tokens: Tensor, disturbance: Tensor) -> Tensor:
    """By the model's own forward, interrupted at the layer."""
    own = OwnForward(decoder.body, decoder.layers, layer, tokens)
    return decoder.own_logits(own.after(disturbance.expand(*tokens.shape, -1))[0], own.form)[None]


def _error(decoder: Decoder, layer: int, rebuilt: Callable[..., Tensor]) -> float:
    """How far logits are from the model's, when they are rebuilt from its parts: relative, 0 for the same."""
    embedding = decoder.model.get_input_embeddings().weight
    # Ids from all over the vocabulary: the first ones are often special, and some have an embedding of zeros.
    tokens = torch.linspace(0, embedding.shape[0] - 1, _TOKENS, dtype=torch.float64, device="cpu").long()
    tokens = tokens.to(embedding.device)[None]
    width = decoder.widths(layer)[1]
    disturbance = torch.linspace(-1, 1, width, dtype=torch.float32, device=decoder.device(layer))
    module = decoder.down_proj(layer)
    handle = module.register_forward_hook(lambda _module, _args, out: out + disturbance.to(out.dtype))
    try:
        expected = decoder.model.forward(input_ids=tokens, use_cache=False).logits.float()
    finally:
        handle.remove()
    actual = rebuilt(decoder, layer, tokens, disturbance).float()
    return float((actual - expected.to(actual.device)).norm() / expected.norm())
