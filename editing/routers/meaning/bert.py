"""A BERT encoder's pass over texts of any lengths, packed: no padding, the weights read once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class PackedBert:
    """The weights of a transformers `BertModel` (arXiv 1810.04805), laid out for this pass.

    Beside the model's own forward it is free of padding and of the modules' overhead: 10 tokens take half the time on
    a CPU. It equals that forward to rounding (`tests/editing/routers/test_meaning_encoder.py`).
    """

    def __init__(self, model: Any) -> None:
        config = model.config
        self.heads = config.num_attention_heads
        self.epsilon = config.layer_norm_eps
        weights = model.state_dict()
        embeddings = "embeddings."
        self.words = weights[f"{embeddings}word_embeddings.weight"]
        # Every text is of the first kind, so what that adds goes into the positions.
        self.positions = (
            weights[f"{embeddings}position_embeddings.weight"] + weights[f"{embeddings}token_type_embeddings.weight"][0]
        )
        self.first_norm = self._affine(weights, f"{embeddings}LayerNorm")
        # Given a plain weight in bfloat16, a product lays it out anew each time: 1.6 of the 10.6 ms of a decision.
        self._lays_out = self.words.dtype == torch.bfloat16 and _lays_bfloat16_out()
        self._linear = _linear_laid_out if self._lays_out else F.linear
        self.layers = [self._layer(weights, f"encoder.layer.{i}.") for i in range(config.num_hidden_layers)]

    @staticmethod
    def reads(model: Any) -> bool:
        """Whether a model is one of these."""
        config = model.config
        plain = getattr(config, "position_embedding_type", None) in (None, "absolute")
        return type(model).__name__ == "BertModel" and plain and config.hidden_act == "gelu" and not config.is_decoder

    def _affine(self, weights: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
        return weights[f"{name}.weight"], weights[f"{name}.bias"]

    def _layer(self, weights: dict[str, Tensor], name: str) -> tuple[Any, ...]:
        own = f"{name}attention.self."
        kinds = ("query", "key", "value")
        products = (
            [torch.cat([weights[f"{own}{kind}.{part}"] for kind in kinds]) for part in ("weight", "bias")],
            *(self._affine(weights, f"{name}{part}.dense") for part in ("attention.output", "intermediate", "output")),
        )
        joint, out, up, down = [(self._laid_out(weight), bias) for weight, bias in products]
        first, last = (self._affine(weights, f"{name}{part}.LayerNorm") for part in ("attention.output", "output"))
        return joint, out, first, up, down, last

    def _laid_out(self, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(weight, None) if self._lays_out else weight

    @torch.inference_mode()
    def __call__(self, texts: Sequence[Sequence[int]]) -> list[Tensor]:
        """Last hidden states `[tokens, width]` of each text, given as token ids; those of one length stand together."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        groups = [(length, len(list(group))) for length, group in groupby(len(texts[i]) for i in order)]
        ids = torch.tensor([token for i in order for token in texts[i]], dtype=torch.long, device="cpu")
        places = torch.cat(
            [torch.arange(length, dtype=torch.int64, device="cpu").repeat(count) for length, count in groups]
        )
        x = self._normed(self.words[ids] + self.positions[places], self.first_norm)
        sizes = [length * count for length, count in groups]
        for joint, out, first_norm, up, down, last_norm in self.layers:
            mixed = self._linear(x, *joint).split(sizes)
            attended = torch.cat([self._attended(part, *group) for part, group in zip(mixed, groups)])
            x = self._normed(x + self._linear(attended, *out), first_norm)
            x = self._normed(x + self._linear(F.gelu(self._linear(x, *up)), *down), last_norm)
        found: list[Tensor] = [x] * len(texts)
        for i, states in zip(order, x.split([len(texts[i]) for i in order])):
            found[i] = states
        return found

    def _attended(self, mixed: Tensor, length: int, count: int) -> Tensor:
        query, key, value = mixed.view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        return attended.transpose(1, 2).reshape(count * length, -1)

    def _normed(self, x: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *norm, self.epsilon)


def _lays_bfloat16_out() -> bool:
    """Whether oneDNN has products in bfloat16 on this processor: it has none without AVX-512."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _linear_laid_out(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`F.linear` with a weight that oneDNN has laid out, bit for bit the same."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
