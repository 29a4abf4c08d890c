"""How transformers' continuous batching is set up where edits are served."""

from __future__ import annotations

import copy
from typing import Any

import torch

from ..editing.errors import CorrigendaError

CPU_TOKENS = 16_384
"""Tokens in the cache of continuous batching on a CPU: .75 GB of SmolLM2 in fp32, 2.1 GB of LLaMA-3-8B in bf16."""
CPU_BATCH_TOKENS = 512
"""Tokens of a pass there. transformers' own 8,192 hold as many rows of the vocabulary: 1.6 GB of SmolLM2's."""


def batching_config(given: dict[str, Any], device: torch.device, resident: int | None = None) -> Any:
    """The configuration of continuous batching, without async batching: its two passes would share one description.

    On a CPU, where transformers takes nine tenths of the memory that is free for its cache and was killed for it, the
    cache has room for `CPU_TOKENS` unless a size is given. resident: of how many edits the rows can be read at once; a
    batch has no more requests.
    """
    from transformers import ContinuousBatchingConfig

    config = given.get("continuous_batching_config")
    if config is None:
        config = getattr(given.get("generation_config"), "continuous_batching_config", None)
    config = ContinuousBatchingConfig() if config is None else copy.copy(config)
    if config.use_async_batching:
        raise CorrigendaError(
            "Edits are served without async batching, where a pass is described while another reads: leave out "
            "use_async_batching."
        )
    config.use_async_batching = False
    if device.type == "cpu" and config.num_blocks is None and config.max_memory_percent is None:
        config.num_blocks = -(-CPU_TOKENS // config.page_size)
    if device.type == "cpu" and config.max_batch_tokens is None:
        config.max_batch_tokens = CPU_BATCH_TOKENS
    if resident is not None and config.max_requests_per_batch is None:
        config.max_requests_per_batch = resident
    if resident is not None and config.max_requests_per_batch > resident:
        raise CorrigendaError(
            f"There is room for the rows of {resident} edits, and a batch may hold {config.max_requests_per_batch} "
            'requests, each about another: serve with a larger "resident", or a smaller max_requests_per_batch.'
        )
    return config
