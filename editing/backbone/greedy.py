"""Greedy decoding by settings of the project's own: what a checkpoint brings along changes no score."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from transformers import GenerationConfig

from ..edits.tokenizer import Tokenizer
from .causal_model import CausalModel


@contextlib.contextmanager
def greedy(model: CausalModel, tokenizer: Tokenizer, max_new_tokens: int) -> Iterator[GenerationConfig]:
    """Within: the model's `generate` knows of no settings but those that it is given; yields greedy ones.

    Of the checkpoint's own (`repetition_penalty`, `min_new_tokens`, `no_repeat_ngram_size`, ...) only the special
    tokens stay: an answer ends at the tokenizer's end or at any of the model's.
    """
    before = model.generation_config
    ends = dict.fromkeys([tokenizer.eos_token_id, *_ids(before.eos_token_id)])
    ends.pop(None, None)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    model.generation_config = GenerationConfig()
    try:
        yield GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            bos_token_id=before.bos_token_id,
            eos_token_id=list(ends) or None,
            pad_token_id=pad,
        )
    finally:
        model.generation_config = before


def _ids(found: int | list[int] | None) -> list[int]:
    return list(found) if isinstance(found, (list, tuple)) else [] if found is None else [int(found)]
