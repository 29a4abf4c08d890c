"""The entry point of vLLM's general plugins: loaded in every process, it wraps the seams that the parts stand in."""

from __future__ import annotations

import functools
from typing import Any

_registered = False


def register() -> None:
    """Put Corrigenda into this process's vLLM. Without settings in a configuration, everything there stays as it is."""
    global _registered
    if _registered:
        return
    _registered = True
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.engine.output_processor import OutputProcessor
    from vllm.v1.worker import gpu_model_runner
    from vllm.v1.worker.gpu_worker import Worker

    from . import admission, checks, layer, lost, prefix_cache, runner

    _wrap(EngineArgs, "create_engine_config", checks.checked)
    _wrap(InputProcessor, "__init__", admission.admitting)
    _wrap(KVCacheCoordinator, "cache_blocks", prefix_cache.without_edited)
    _wrap(KVCacheManager, "get_computed_blocks", prefix_cache.of_the_prompt)
    _wrap(gpu_model_runner.GPUModelRunner, "initialize_kv_cache", runner.connected)
    _wrap(gpu_model_runner.GPUModelRunner, "_update_states", runner.renewed)
    _wrap(gpu_model_runner.GPUModelRunner, "_model_forward", runner.described)
    _wrap(Worker, "execute_model", lost.reported)
    _wrap(Worker, "sample_tokens", lost.reported)
    _wrap(Scheduler, "update_from_output", lost.ended)
    _wrap(OutputProcessor, "process_outputs", lost.counted)
    layer.register()
    try:
        from vllm.v1.worker.gpu import model_states
    except ImportError:  # the second model runner needs Triton, which CPU builds lack
        return
    from .model_state import edited_state

    _wrap(model_states, "resolve_model_state_cls", edited_state)


def _wrap(owner: Any, name: str, wrapper: Any) -> None:
    """Replace `owner.name` by a function that calls `wrapper(original, ...)`."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    setattr(owner, name, wrapped)
