"""The places in vLLM that the plugin wraps are where it expects them; runs where vLLM is installed."""

from __future__ import annotations

import inspect

import pytest

pytest.importorskip("vllm")


def parameters(function):
    return list(inspect.signature(function).parameters)


def test_the_plugin_finds_every_seam():
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.custom_op import op_registry_oot
    from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.engine.output_processor import OutputProcessor
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner
    from vllm.v1.worker.gpu_worker import Worker

    assert parameters(Scheduler.update_from_output) == ["self", "scheduler_output", "model_runner_output"]
    assert parameters(Scheduler.finish_requests) == ["self", "request_ids", "finished_status"]
    assert "request is None or request.is_finished()" in inspect.getsource(Scheduler.update_from_output)
    assert parameters(OutputProcessor.process_outputs)[:2] == ["self", "engine_core_outputs"]
    assert parameters(KVCacheCoordinator.cache_blocks) == ["self", "request", "num_computed_tokens"]
    assert "cache_blocks" not in {name for kind in KVCacheCoordinator.__subclasses__() for name in vars(kind)}, (
        "a coordinator that caches blocks in its own way"
    )
    assert parameters(KVCacheManager.get_computed_blocks) == ["self", "request"]
    assert "request.num_tokens - 1" in inspect.getsource(KVCacheManager.get_computed_blocks)
    assert parameters(InputProcessor.assign_request_id) == ["request"]
    assert parameters(GPUModelRunner._model_forward)[0] == "self"
    assert parameters(GPUModelRunner._update_states) == ["self", "scheduler_output"]
    assert parameters(GPUModelRunner.initialize_kv_cache)[:2] == ["self", "kv_cache_config"]

    from corrigenda.serving.vllm.plugin import register

    register()
    register()
    wrapped = (
        (EngineArgs, "create_engine_config"),
        (InputProcessor, "__init__"),
        (KVCacheCoordinator, "cache_blocks"),
        (KVCacheManager, "get_computed_blocks"),
        (GPUModelRunner, "_update_states"),
        (GPUModelRunner, "_model_forward"),
        (GPUModelRunner, "initialize_kv_cache"),
        (Worker, "execute_model"),
        (Worker, "sample_tokens"),
        (Scheduler, "update_from_output"),
        (OutputProcessor, "process_outputs"),
    )
    for owner, name in wrapped:
        function = getattr(owner, name)
        made_in = [part.__code__.co_filename.endswith("plugin.py") for part in (function, function.__wrapped__)]
        assert made_in == [True, False], name  # vLLM wraps some of them itself
    assert op_registry_oot["RowParallelLinear"].__name__ == "EditedRowParallelLinear"


def test_the_second_runner_has_the_hooks_that_its_state_takes():
    interface = pytest.importorskip("vllm.v1.worker.gpu.model_states.interface")
    state = interface.ModelState
    assert parameters(state.add_request) == ["self", "req_index", "new_req_data"]
    assert parameters(state.remove_request) == ["self", "req_id"]
    assert parameters(state.preprocess_state)[:2] == ["self", "input_batch"]
    from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
    from vllm.v1.worker.gpu.input_batch import InputBatch

    assert {"req_ids", "num_reqs", "num_computed_tokens_np", "query_start_loc_np"} <= set(InputBatch.__annotations__)
    assert {"finished_req_ids", "scheduled_new_reqs"} <= set(SchedulerOutput.__annotations__)
    assert {"req_id", "sampling_params"} <= set(NewRequestData.__annotations__) and hasattr(
        NewRequestData, "prompt_len"
    )


def test_beam_searches_ask_before_they_begin():
    from vllm.entrypoints.generate.beam_search.offline import BeamSearchOfflineMixin
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin

    for mixin in (BeamSearchOfflineMixin, BeamSearchOnlineMixin):
        assert "input_processor.resolve_watermarking(params)" in inspect.getsource(mixin.beam_search)


def test_the_endpoints_are_what_vllm_calls_a_plugin():
    from vllm.plugins.endpoint_plugins.interface import EndpointPlugin

    from corrigenda.serving.vllm.endpoints import EditsEndpoints

    assert isinstance(EditsEndpoints(), EndpointPlugin)


def test_edits_for_another_model_are_refused_at_the_start(tmp_path, few_background_prompts, monkeypatch):
    """One sentence, before any weight is read."""
    from served import SHARED, store
    from tiny import save_tiny, tiny_model
    from vllm.config import ModelConfig
    from vllm.engine.arg_utils import EngineArgs

    from corrigenda.editing import CorrigendaError
    from corrigenda.serving.vllm.plugin import register

    register()
    folder = store(tmp_path / "edits", SHARED, model=tiny_model(layers=3))
    path = save_tiny(tmp_path / "model")
    with pytest.raises(CorrigendaError, match="its layers are 3, not 4"):
        EngineArgs(str(path), additional_config={"corrigenda": str(folder)}).create_engine_config()
    with pytest.raises(CorrigendaError, match="There is no folder"):
        EngineArgs(str(path), additional_config={"corrigenda": "nowhere"}).create_engine_config()
    fits = store(tmp_path / "fits", SHARED)
    config = EngineArgs(str(path), additional_config={"corrigenda": str(fits)}).create_engine_config()
    assert config.additional_config["corrigenda_layer"]["layer"] == 2
    assert config.parallel_config.worker_extension_cls.endswith("EditsWorker")
    several = EngineArgs(str(path), data_parallel_size=2, additional_config={"corrigenda": str(fits)})
    assert several.create_engine_config().parallel_config.data_parallel_size == 2
    monkeypatch.setattr(ModelConfig, "is_moe", True)
    with pytest.raises(CorrigendaError, match="data parallelism of a mixture of experts"):
        several.create_engine_config()
