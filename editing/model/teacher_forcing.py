"""One pass over prompts with their continuations: each row is routed by its prompt, as generation would route it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..methods.method import Method
from ..routers.context import RoutingContext
from .generation import fingerprint_weight


@contextlib.contextmanager
def forced(
    method: Method, context: RoutingContext, ids: Tensor, prompts: Sequence[int], lengths: Sequence[int]
) -> Iterator[Callable[[], list[int]]]:
    """Within: one forward over right-padded `ids` `[rows, length]`, row i routed by its first `prompts[i]` tokens.

    lengths: how many tokens of each row are real. Yields a function that tells the edit applied to each row, or -1,
    once the forward has run.
    """
    rows = [row[:count] for row, count in zip(ids.tolist(), prompts)]
    known = method.decide(rows)
    columns = torch.arange(ids.shape[1], dtype=torch.int64, device=ids.device)
    last = torch.tensor(prompts, dtype=torch.int64, device=ids.device)[:, None] - 1
    real = columns < torch.tensor(lengths, dtype=torch.int64, device=ids.device)[:, None]
    gate = real if method.config.scope == "full" else real & (columns >= last)
    weight = fingerprint_weight(method, rows, columns <= last)
    context.start(torch.full((len(rows),), -1, dtype=torch.int32, device="cpu") if known is None else known.route)
    context.fill(gate, columns == last, weight, deciding=known is None)
    if known is not None:
        context.decision = known
    try:
        yield lambda: context.routes.tolist()
    finally:
        context.stop()
