"""vLLM's first model runner: what it tells of a step, in the terms of the slots."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...editing.errors import CorrigendaError
from .keys import settings_in
from .protocols import EngineConfig, SchedulerOutput
from .worker import WorkerEdits, request_info


def connected(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """`initialize_kv_cache`, the first moment with a loaded model: find the edited layer in it, and check the model."""
    if settings_in(self.vllm_config) is not None:
        self.corrigenda = edits_in(self.model, self.vllm_config)
    return original(self, *args, **kwargs)


def edits_in(model: Any, vllm_config: EngineConfig) -> WorkerEdits | None:
    """The edits beside a model's layer; None where another stage of a pipeline has it."""
    found = next((m.corrigenda for m in model.modules() if hasattr(m, "corrigenda")), None)
    parallel = vllm_config.parallel_config
    if found is None:
        if parallel.pipeline_parallel_size == 1:
            raise CorrigendaError(
                f"{type(model).__name__} cannot be edited: no layer of it is built as a row-parallel mlp.down_proj."
            )
        return None
    found.check_weights(
        model, vllm_config.model_config.get_vocab_size() if parallel.tensor_parallel_size == 1 else None
    )
    return found


def renewed(original: Any, self: Any, scheduler_output: SchedulerOutput) -> Any:
    """`_update_states`, where requests come and go: rows of those that are over are held no longer.

    An id may end and come back in one step. One that comes anew without an end is a session's next prompt.
    """
    edits = getattr(self, "corrigenda", None)
    if edits is not None:
        edits.end(scheduler_output.finished_req_ids)
        edits.end(new.req_id for new in scheduler_output.scheduled_new_reqs)
    return original(self, scheduler_output)


def described(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """`_model_forward`, which runs for real steps alone, outside of what is compiled or captured."""
    edits = getattr(self, "corrigenda", None)
    if edits is not None:
        batch = self.input_batch
        count = batch.num_reqs
        offsets = self.query_start_loc.np[: count + 1]
        # On the device: what was sampled last may not have come to the host.
        given = kwargs.get("input_ids", args[0] if args else None)
        edits.describe(
            batch.req_ids[:count],
            batch.num_computed_tokens_cpu[:count].astype(np.int64),
            np.diff(offsets).astype(np.int64),
            lambda request: request_info(
                self.requests[request].num_prompt_tokens, self.requests[request].sampling_params
            ),
            self.input_ids.gpu if given is None else given,
        )
    output = original(self, *args, **kwargs)
    if edits is not None:
        edits.computed(self.input_batch.req_ids[: self.input_batch.num_reqs])
    return output
