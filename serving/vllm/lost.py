"""Requests that a worker could not answer by their edit fail, each with an error: none is answered under its name.

A worker says so with a step's output, the engine core ends them there, and the front end counts them. What raises in
the parts of a step that are Corrigenda's goes the same way; else it would end the engine, and every request with it.
"""

from __future__ import annotations

import copy
from typing import Any

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput
from vllm.v1.request import RequestStatus

from ..metrics import Metrics
from .admission import wrote
from .worker import edits_of_worker

_FIELD = "corrigenda_lost"
LOST = "corrigenda: lost"
"""Why such a request stopped, as the engine core tells the front end."""


class _Later(AsyncModelRunnerOutput):
    """A step's output that is still being computed, and what is to be said with it."""

    def __init__(self, output: AsyncModelRunnerOutput, lost: set[str]) -> None:
        self._output = output
        self._lost = lost

    def get_output(self) -> ModelRunnerOutput:
        return _with(self._output.get_output(), self._lost)


def _with(output: ModelRunnerOutput, lost: set[str]) -> ModelRunnerOutput:
    output = copy.copy(output)  # one of them is shared by all empty steps
    setattr(output, _FIELD, lost)
    return output


def reported(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """`Worker.execute_model` and `sample_tokens`: with a step's output go the requests that are lost."""
    output = original(self, *args, **kwargs)
    edits = edits_of_worker(self)
    if edits is None or not edits.lost:
        return output
    if isinstance(output, ModelRunnerOutput):
        return _with(output, edits.take_lost())
    return _Later(output, edits.take_lost()) if isinstance(output, AsyncModelRunnerOutput) else output


def ended(original: Any, self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
    """`Scheduler.update_from_output`: the lost ones are finished before it looks for their tokens."""
    lost = getattr(model_runner_output, _FIELD, ())
    requests = self.finish_requests(lost, RequestStatus.FINISHED_ERROR) if lost else []
    outputs = original(self, scheduler_output, model_runner_output)
    for request in requests:
        of_client = outputs.setdefault(request.client_index, EngineCoreOutputs())
        of_client.outputs.append(
            EngineCoreOutput(request.request_id, [], finish_reason=FinishReason.ERROR, stop_reason=LOST)
        )
    return outputs


def counted(original: Any, self: Any, engine_core_outputs: Any, *args: Any, **kwargs: Any) -> Any:
    """`OutputProcessor.process_outputs`: the first place in the front end that sees them, and what was written."""
    lost = sum(output.stop_reason == LOST for output in engine_core_outputs)
    if lost:
        Metrics().lost(lost)
    done = original(self, engine_core_outputs, *args, **kwargs)
    for output in engine_core_outputs:  # a stop string ends an answer here, and whoever asked is not told before
        wrote(output, ended=output.request_id not in self.request_states)
    return done
