"""A LLaMA or Mistral decoder layer in part, which is all that is asked of a model's last one.

At a few query positions, where answers are predicted; of tokens before them, only keys and values.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer

_KNOWN = (LlamaDecoderLayer, MistralDecoderLayer)


def knows(layer: nn.Module) -> bool:
    """Whether the layer is one whose parts this file may call one by one."""
    return type(layer) in _KNOWN


class LabelPositions:
    """Where a last layer is asked, and its rotary angles and mask there: all that passes of the same rows share.

    asked `[rows, length]` bool, angles as `rotary_emb` gives them, mask additive `[1 or rows, 1, length, length]`
    """

    def __init__(self, asked: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor, device: torch.device) -> None:
        asked, mask = asked.to(device), mask.to(device)
        rows, counts = len(asked), asked.sum(1)
        # Asked positions first, in order, padded to the longest row with positions that are dropped at the end.
        self.place = asked.int().argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]
        kept = torch.arange(self.place.shape[1], dtype=torch.int64, device=asked.device) < counts[:, None]
        self.kept = kept.view(-1).nonzero()[:, 0]
        self.angles = tuple(part.to(device).expand(rows, -1, -1) for part in angles)
        at = self.place[..., None].expand(-1, -1, angles[0].shape[2])
        self.query_angles = tuple(part.gather(1, at) for part in self.angles)
        in_mask = self.place[:, None, :, None].expand(-1, -1, -1, mask.shape[3])
        self.mask = mask.expand(rows, -1, -1, -1).gather(2, in_mask)


def layer_at(layer: nn.Module, hidden: Tensor, asked: LabelPositions) -> Tensor:
    """The layer's output at the asked positions, `[asked tokens, d]` in row order, of `hidden` `[rows, length, d]`.

    Keys and values are made of every token, all else of the asked ones: for 3 answer tokens in a row of 27, a seventh
    of the layer's work.
    """
    rows, _, width = hidden.shape
    place = asked.place
    residual = hidden.gather(1, place[..., None].expand(-1, -1, width))

    attention = layer.self_attn
    key, value = keys_and_values(layer, hidden, asked.angles)
    query = _heads(attention, attention.q_proj, layer.input_layernorm(residual))
    query = apply_rotary_pos_emb(query, query, *asked.query_angles)[0]
    mixed = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=asked.mask,
        scale=attention.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    residual = residual + attention.o_proj(mixed.transpose(1, 2).reshape(rows, place.shape[1], -1))
    residual = residual + layer.mlp(layer.post_attention_layernorm(residual))
    return residual.flatten(0, 1).index_select(0, asked.kept)


def keys_and_values(layer: nn.Module, hidden: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """What the layer's attention keeps of `hidden` `[rows, length, d]`, each `[rows, heads, length, head width]`."""
    attention, normed = layer.self_attn, layer.input_layernorm(hidden)
    key = _heads(attention, attention.k_proj, normed)
    return apply_rotary_pos_emb(key, key, *angles)[1], _heads(attention, attention.v_proj, normed)


def _heads(attention: nn.Module, projection: nn.Module, tokens: Tensor) -> Tensor:
    return projection(tokens).view(*tokens.shape[:2], -1, attention.head_dim).transpose(1, 2)
