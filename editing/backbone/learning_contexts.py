"""Texts to put before a prompt while it is learnt, written by the model, so that an edit holds in any context."""

from __future__ import annotations

import torch

from ..edits.tokenizer import Tokenizer
from .causal_model import CausalModel
from .greedy import greedy

_STARTS = ("I", "You", "Because", "Yes", "Q: ")


@torch.no_grad()
def context_texts(model: CausalModel, tokenizer: Tokenizer, count: int) -> list[str]:
    """`count` contexts: the empty one, then greedy continuations of five starts, 5 new tokens each and then 10.

    The starts and lengths are those of WISE's and MEMOIR's published code. More than eleven need longer continuations:
    lengths go on by fives.
    """
    device = model.get_input_embeddings().weight.device
    texts = [""]
    length = 0
    while len(texts) < count:
        length += 5
        for start in _STARTS:
            ids = torch.tensor([tokenizer(start)["input_ids"]], dtype=torch.int64, device=device)
            with greedy(model, tokenizer, length) as settings:
                generated = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
            texts.append(tokenizer.decode(generated[0], skip_special_tokens=True))
    return texts[:count]
