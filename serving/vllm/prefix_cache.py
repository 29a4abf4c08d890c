"""The engine core's part: blocks of the prefix cache hold what the base model computes, and nothing else.

From an edited request's last prompt token on, its keys and values above the edited layer are the edit's. They are
neither put into the cache nor taken from it. A later prompt that repeats the answer, as the next turn of a chat does,
computes it anew, as it would without a cache.
"""

from __future__ import annotations

from typing import Any

from .keys import edit_of
from .protocols import CoreRequest


def without_edited(original: Any, self: Any, request: CoreRequest, num_computed_tokens: int) -> None:
    """`KVCacheCoordinator.cache_blocks`: of an edited request, only blocks before the last prompt token."""
    if edit_of(request.sampling_params) is not None:
        num_computed_tokens = min(num_computed_tokens, request.num_prompt_tokens - 1)
    return original(self, request, num_computed_tokens)


def of_the_prompt(original: Any, self: Any, request: CoreRequest) -> Any:
    """`KVCacheManager.get_computed_blocks`: an edited request that starts anew, its answer so far behind its prompt,
    takes no block of the answer, which another's prompt may have brought there.
    """
    return original(self, _Prompt(request) if edit_of(request.sampling_params) is not None else request)


class _Prompt:
    """A request as it was before it had an answer."""

    def __init__(self, request: CoreRequest) -> None:
        self._request = request
        self.num_tokens = request.num_prompt_tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)
