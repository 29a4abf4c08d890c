"""What raises in a pass of continuous batching ends that pass's requests; transformers' worker would end with it."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import torch

from ..editing.errors import CorrigendaError
from .log import logger_of

logger = logger_of("corrigenda")

_STOPPED = "The values of this request's edit are no numbers, or too large: it is not answered; undo that edit."


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


def fail_stopped(processor: Any, states: Sequence[Any]) -> None:
    """Fail requests whose edit the layer has left out in the pass that was just made."""
    for state in states:
        state.generated_tokens = []  # else they would go out with the failure
        processor._handle_request_error(CorrigendaError(_STOPPED), state)
        processor.scheduler.finish_request(state.request_id)


def withheld(outputs: Sequence[Any], stopped: Container[str]) -> list[Any]:
    """The results of a pass, without those of requests whose edit was left out: a last one becomes a failure."""
    from transformers.generation.continuous_batching.requests import RequestStatus

    kept = []
    for output in outputs:
        if output.request_id in stopped:
            if not output.is_finished():
                continue  # `fail_stopped` says the last word
            output.status, output.error, output.generated_tokens = RequestStatus.FAILED, _STOPPED, []
        kept.append(output)
    return kept
