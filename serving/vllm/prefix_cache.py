"""The engine core's part: blocks of the prefix cache hold what the base model computes, and nothing else."""

from __future__ import annotations

from typing import Any


def without_edited(original: Any, self: Any, request: Any, num_computed_tokens: int) -> None:
    """`KVCacheCoordinator.cache_blocks`: of a request that an edit answers, only blocks before the last prompt token.

    From that token on its keys and values above the edited layer are the edit's. A later prompt that repeats the
    answer, as the next turn of a chat does, computes it anew, as it would without a cache.
    """
    extra = getattr(request.sampling_params, "extra_args", None) or {}
    if (extra.get("corrigenda") or {}).get("edit") is not None:
        num_computed_tokens = min(num_computed_tokens, request.num_prompt_tokens - 1)
    return original(self, request, num_computed_tokens)
