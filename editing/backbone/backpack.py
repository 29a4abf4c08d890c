"""Backpack language models (arXiv 2305.16765): a word's senses are vectors, and what a text says is a weighted sum."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.modeling_outputs import BaseModelOutputWithPast


class BackpackConfig(LlamaConfig):
    """A LLaMA's, which weighs the senses, and how many each token has."""

    model_type = "corrigenda_backpack"
    senses: int = 16

    def __init__(self, senses: int = 16, **settings: Any) -> None:
        super().__init__(**{"tie_word_embeddings": True, **settings})
        self.senses = senses


class Senses(nn.Module):
    """C: embeddings `[rows, length, d]` to senses `[rows, length, senses * d]`, of each token by itself."""

    def __init__(self, config: BackpackConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.inner = nn.Linear(width, 4 * width)
        self.outer = nn.Linear(4 * width, config.senses * width)

    def forward(self, embedded: Tensor) -> Tensor:
        return self.outer(nn.functional.gelu(self.inner(embedded)))


class BackpackModel(LlamaModel):
    """o_t = sum over senses l and tokens s up to t of alpha_lts C(x_s)_l; alpha by attention over a LLaMA's states.

    No keys and values are kept: each pass is of the whole text.
    """

    def __init__(self, config: BackpackConfig) -> None:
        super().__init__(config)
        self.senses = Senses(config)
        self.asks = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.answers = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.post_init()

    def weights(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """alpha `[rows, senses, length, length]` of states `[rows, length, d]`; `mask` is 0 on padding."""
        rows, length, _ = hidden.shape
        count = self.config.senses
        query, key = (part(hidden).view(rows, length, count, -1).transpose(1, 2) for part in (self.asks, self.answers))
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        unseen = torch.ones(length, length, dtype=torch.bool, device=hidden.device).triu(1)[None, None]
        if mask is not None:
            unseen = unseen | ~mask.bool()[:, None, None]
        # A padded row sees itself, or its softmax would be of nothing.
        unseen = unseen & ~torch.eye(length, dtype=torch.bool, device=hidden.device)
        return scores.masked_fill(unseen, torch.finfo(scores.dtype).min).softmax(-1)

    def forward(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, **_: Any
    ) -> BaseModelOutputWithPast:
        embedded = self.embed_tokens(input_ids)
        states = super().forward(
            inputs_embeds=embedded, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        )
        alpha = self.weights(states.last_hidden_state, attention_mask)
        senses = self.senses(embedded).view(*input_ids.shape, self.config.senses, -1)
        return BaseModelOutputWithPast(last_hidden_state=torch.einsum("blts,bsld->btd", alpha, senses))


class BackpackForCausalLM(LlamaForCausalLM):
    """Logits E o_t, of the embeddings E."""

    config_class = BackpackConfig

    def __init__(self, config: BackpackConfig) -> None:
        super().__init__(config)
        self.model = BackpackModel(config)
        self.post_init()

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        """The whole text each time."""
        if attention_mask is None:
            return {"input_ids": input_ids, "use_cache": False}
        position = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position,
            "use_cache": False,
        }
