"""vLLM's second model runner: the same as a state beside its requests. It fills buffers before a graph is replayed."""

from __future__ import annotations

from typing import Any

import numpy as np

from .keys import settings_in
from .protocols import EngineConfig, NewRequest, StateBatch
from .runner import edits_in
from .worker import RequestInfo, request_info


def edited_state(original: Any, vllm_config: EngineConfig, model: Any) -> type:
    """`resolve_model_state_cls`: the class that it finds, and with edits a subclass that knows of them."""
    found = original(vllm_config, model)
    return found if settings_in(vllm_config) is None else type(f"Edited{found.__name__}", (EditedState, found), {})


_ModelState: Any = object  # one of vLLM's, before this one in the class that `edited_state` makes


class EditedState(_ModelState):
    """Mixed into a `ModelState`: a request's decision comes with it, and each step's tokens are described."""

    def __init__(self, vllm_config: EngineConfig, model: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(vllm_config, model, *args, **kwargs)
        self.corrigenda = edits_in(model, vllm_config)
        self._requests: dict[str, RequestInfo] = {}
        self._passed: list[str] = []

    def add_request(self, req_index: int, new_req_data: NewRequest) -> None:
        super().add_request(req_index, new_req_data)
        # The prompt's length, not that of the prefill: after preemption that one holds generated tokens too.
        self._requests[new_req_data.req_id] = request_info(new_req_data.prompt_len, new_req_data.sampling_params)

    def remove_request(self, req_id: str) -> None:
        super().remove_request(req_id)
        self._requests.pop(req_id, None)
        if self.corrigenda is not None:
            self.corrigenda.end([req_id])

    def preprocess_state(self, input_batch: StateBatch, *args: Any, **kwargs: Any) -> None:
        super().preprocess_state(input_batch, *args, **kwargs)
        if self.corrigenda is not None:
            self.corrigenda.computed(self._passed)  # of the pass before: nothing here is called after one
            count = input_batch.num_reqs
            self._passed = list(input_batch.req_ids[:count])
            self.corrigenda.describe(
                input_batch.req_ids[:count],
                input_batch.num_computed_tokens_np[:count].astype(np.int64),
                np.diff(input_batch.query_start_loc_np[: count + 1]).astype(np.int64),
                self._requests.__getitem__,
                input_batch.input_ids,
            )
