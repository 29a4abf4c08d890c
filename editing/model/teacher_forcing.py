"""One pass over prompts with their continuations: each row is routed by its prompt, as generation would route it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import CorrigendaError
from ..methods.method import Method
from ..routers.context import RoutingContext
from ..routers.router import Decision
from .generation import fingerprint_weight


@contextlib.contextmanager
def forced(
    method: Method,
    context: RoutingContext,
    ids: Tensor,
    prompts: Sequence[int],
    lengths: Sequence[int],
    known: Decision | None = None,
) -> Iterator[Callable[[], list[int]]]:
    """Within: one forward over right-padded `ids` `[rows, length]`, row i routed by its first `prompts[i]` tokens.

    lengths: how many tokens of each row are real. known: what was decided of the prompts, where edits are read as text
    and these have it before them. Yields a function that tells the edit applied to each row, or -1,
    once the forward has run.
    """
    rows = [row[:count] for row, count in zip(ids.tolist(), prompts)]
    if known is None:
        known = method.decide(rows)
        if method.reads_text and bool((known.route >= 0).any()):
            raise CorrigendaError(
                f"The method {method.config.method} puts an edit's text before a prompt: give teacher_forcing what "
                "read_as makes of the prompts, and what it decided as `known`."
            )
    columns = torch.arange(ids.shape[1], dtype=torch.int64, device=ids.device)
    last = torch.tensor(prompts, dtype=torch.int64, device=ids.device)[:, None] - 1
    real = columns < torch.tensor(lengths, dtype=torch.int64, device=ids.device)[:, None]
    gate = real if method.config.scope == "full" else real & (columns >= last)
    weight = fingerprint_weight(method, rows, columns <= last)
    unknown = torch.full((len(rows),), -1, dtype=torch.int32, device="cpu")
    context.start(unknown if known is None else method.located(known.route))
    context.fill(gate, columns == last, weight, deciding=known is None)
    if known is not None:
        context.decision = known
        for slot, (plan, count) in enumerate(zip(method.plans(rows, known), prompts), start=1):
            context.follow(slot, plan, count - 1, lambda: method.prompts.vocabulary.kinds)
        slots: np.ndarray = np.arange(1, len(rows) + 1)
        context.advance(ids.reshape(-1), slots, np.zeros_like(slots), np.full_like(slots, ids.shape[1]))
    try:
        yield lambda: (context.routes if known is None else known.route).tolist()
    finally:
        context.stop()
        method.release()
