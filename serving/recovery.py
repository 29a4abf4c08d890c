"""What raises in a pass of continuous batching ends that pass's requests; transformers' worker would end with it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from ..editing.errors import CorrigendaError

logger = logging.getLogger("corrigenda")


def fail_pass(processor: Any, states: Sequence[Any], error: Exception) -> bool:
    """Fail the requests of the pass in which `error` was raised; whether the worker can go on.

    processor: transformers' `ContinuousBatchProcessor`. states: of the requests in that pass whose result was not
    delivered yet; where it was raised before a pass was put together, nobody can say whose fault it is, and all fail.
    Their blocks are given back: a block is offered to others only after a pass, so what a broken one left is in none.
    An accelerator's own error leaves nothing on it that could go on, and without requests nothing would change.
    """
    scheduler = processor.scheduler
    if isinstance(error, torch.AcceleratorError) or not (states or scheduler.has_pending_requests()):
        return False
    logger.error("A pass failed, and its requests with it: %s.", len(states) or "all", exc_info=error)
    told = CorrigendaError(f"The pass that this request was in failed ({type(error).__name__}): ask again.")
    if not states:
        processor.fail_all_requests(told)
    for state in states:
        processor._handle_request_error(told, state)
        if scheduler.active_requests.get(state.request_id) is state:
            scheduler.finish_request(state.request_id)
    scheduler._requests_to_fork = [state for state in scheduler._requests_to_fork if state not in states]
    scheduler.block_new_requests = False
    return True
