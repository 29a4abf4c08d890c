"""What is asked of vLLM's own objects, apart from the seams (`plugin.py`): the type checker holds the parts to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch


class SamplingParams(Protocol):
    """How a request is answered; `extra_args` go with it to the engine core and the workers."""

    extra_args: dict[str, Any] | None


class EngineRequest(Protocol):
    """A request on its way from the front end to the engine core."""

    request_id: str
    prompt_token_ids: list[int] | None
    sampling_params: SamplingParams | None
    cache_salt: str | None


class CoreRequest(Protocol):
    """A request as the engine core's scheduler has it."""

    sampling_params: SamplingParams | None
    num_prompt_tokens: int


class ModelConfig(Protocol):
    """Which model an engine has."""

    model: str
    tokenizer: str | None
    dtype: torch.dtype
    hf_text_config: Any

    def get_vocab_size(self) -> int: ...


class ParallelConfig(Protocol):
    """Over how many workers it is spread."""

    pipeline_parallel_size: int
    tensor_parallel_size: int
    data_parallel_size: int


class SchedulerConfig(Protocol):
    """How much a step takes."""

    max_num_batched_tokens: int
    max_num_seqs: int


class DeviceConfig(Protocol):
    """Where it computes."""

    device: torch.device


class EngineConfig(Protocol):
    """An engine's configuration; the settings of its edits are in `additional_config`."""

    additional_config: dict[str, Any]
    model_config: ModelConfig
    parallel_config: ParallelConfig
    scheduler_config: SchedulerConfig
    device_config: DeviceConfig


class EngineOutput(Protocol):
    """What a step has written of one answer."""

    request_id: str
    new_token_ids: list[int]


class OutputProcessor(Protocol):
    """The front end's book of requests that are answered."""

    request_states: Mapping[str, object]
    parent_requests: Mapping[str, object]


class NewRequest(Protocol):
    """A request that comes to a worker."""

    req_id: str
    prompt_len: int
    sampling_params: SamplingParams


class SchedulerOutput(Protocol):
    """What a step is to do."""

    finished_req_ids: Iterable[str]
    scheduled_new_reqs: Sequence[NewRequest]


class StateBatch(Protocol):
    """The second model runner's step: its requests, and where the tokens of each begin."""

    num_reqs: int
    req_ids: Sequence[str]
    num_computed_tokens_np: np.ndarray
    query_start_loc_np: np.ndarray
    input_ids: torch.Tensor
