"""A LLaMA or Mistral decoder layer at a few query positions: all that a model's last layer is asked for."""

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


def layer_at(layer: nn.Module, hidden: Tensor, asked: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
    """The layer's output where `asked` `[rows, length]` is true, `[asked tokens, d]` in row order.

    Keys and values are made of every token, all else of the asked ones: for 3 answer tokens in a row of 27, a seventh
    of the layer's work. hidden `[rows, length, d]`, mask additive `[1 or rows, 1, length, length]`.
    """
    rows, _, width = hidden.shape
    counts = asked.sum(1)
    # Asked positions first, in order, padded to the longest row with positions that are dropped at the end.
    place = asked.int().argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]
    kept = torch.arange(place.shape[1], device=hidden.device) < counts[:, None]
    residual = hidden.gather(1, place[..., None].expand(-1, -1, width))

    attention = layer.self_attn

    def heads(projection: nn.Module, tokens: Tensor) -> Tensor:
        return projection(tokens).view(rows, tokens.shape[1], -1, attention.head_dim).transpose(1, 2)

    normed = layer.input_layernorm(hidden)
    cos, sin = (part.expand(rows, -1, -1) for part in angles)
    key = heads(attention.k_proj, normed)
    key = apply_rotary_pos_emb(key, key, cos, sin)[1]
    query = heads(attention.q_proj, layer.input_layernorm(residual))
    at = place[..., None].expand(-1, -1, cos.shape[2])
    query = apply_rotary_pos_emb(query, query, cos.gather(1, at), sin.gather(1, at))[0]
    visible = mask.expand(rows, -1, -1, -1).gather(2, place[:, None, :, None].expand(-1, -1, -1, mask.shape[3]))
    mixed = F.scaled_dot_product_attention(
        query,
        key,
        heads(attention.v_proj, normed),
        attn_mask=visible,
        scale=attention.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    residual = residual + attention.o_proj(mixed.transpose(1, 2).reshape(rows, place.shape[1], -1))
    return (residual + layer.mlp(layer.post_attention_layernorm(residual)))[kept]
