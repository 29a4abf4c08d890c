"""The parts in vLLM's engine core and workers, without vLLM: what each reads of a request or a step."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from served import SHARED, store
from tiny import save_tiny
from torch import nn

from corrigenda.editing import CorrigendaError, Edit
from corrigenda.editing.edits.answer_start import AnswerPlan
from corrigenda.editing.model.layer import EditedOutput
from corrigenda.serving.vllm.keys import CONFIG, LAYER
from corrigenda.serving.vllm.model_state import edited_state
from corrigenda.serving.vllm.prefix_cache import of_the_prompt, without_edited
from corrigenda.serving.vllm.runner import connected, described, renewed
from corrigenda.serving.vllm.worker import EditsWorker, WorkerEdits, request_info

pytestmark = pytest.mark.usefixtures("few_background_prompts")


@pytest.fixture(scope="module")
def folder(few_background_prompts, tmp_path_factory):
    return store(tmp_path_factory.mktemp("stores") / "shared", SHARED)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.fixture
def config(folder, tokenizer_folder):
    return SimpleNamespace(
        additional_config={CONFIG: str(folder), LAYER: {"layer": 2, "layers": 4, "widths": [160, 64]}},
        device_config=SimpleNamespace(device="cpu"),
        model_config=SimpleNamespace(
            model="?", tokenizer=tokenizer_folder, dtype=torch.float32, get_vocab_size=lambda: 700
        ),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=64, max_num_seqs=4),
        parallel_config=SimpleNamespace(pipeline_parallel_size=1, tensor_parallel_size=1),
    )


def sampling(key):
    return SimpleNamespace(extra_args=None if key is None else {"corrigenda": {"edit": key, "version": 1}})


class Model(nn.Module):
    """A layer with edits, and nothing that edits could be checked against."""

    def __init__(self, edits):
        super().__init__()
        self.layer = nn.Linear(160, 64)
        self.layer.register_forward_hook(EditedOutput(edits.memory.banks, edits.context))
        self.layer.corrigenda = edits


def keys(edits):
    return list(edits.memory._place)


def test_blocks_with_an_edits_values_are_not_shared():
    cached = []

    def original(self, request, count):
        cached.append(count)

    edited = SimpleNamespace(sampling_params=sampling("k"), num_prompt_tokens=40)
    plain = SimpleNamespace(sampling_params=sampling(None), num_prompt_tokens=40)
    pooled = SimpleNamespace(sampling_params=None, num_prompt_tokens=40)
    for request, count in ((edited, 32), (edited, 64), (plain, 64), (pooled, 64)):
        without_edited(original, None, request, count)
    assert cached == [32, 39, 64, 64]


def test_a_request_that_starts_anew_takes_no_block_of_its_answer():
    def original(self, request):
        return request.num_tokens, request.block_hashes

    for key, tokens in (("k", 40), (None, 55)):
        request = SimpleNamespace(
            sampling_params=sampling(key), num_prompt_tokens=40, num_tokens=55, block_hashes=["a", "b"]
        )
        assert of_the_prompt(original, None, request) == (tokens, ["a", "b"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_an_edit_answers_in_the_dtype_that_the_server_loads_its_model_in(config, dtype):
    """vLLM sets torch's default dtype to the model's while it builds it, which is bfloat16 where nobody names one."""
    config.model_config.dtype = dtype
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        edits = WorkerEdits(config)
    finally:
        torch.set_default_dtype(before)
    key = keys(edits)[0]
    edits.describe(["a"], np.array([0]), np.array([3]), lambda request: request_info(2, sampling(key)))
    layer = Model(edits).layer.to(dtype)
    x = torch.randn(3, 160).to(dtype)
    with torch.no_grad():
        base, out = layer.forward(x), layer(x)
    assert out.dtype == dtype and torch.equal(out[:1], base[:1]) and not torch.equal(out[1:], base[1:])


def test_the_first_runner_describes_its_steps(config):
    edits = WorkerEdits(config)
    runner = SimpleNamespace(vllm_config=config, model=Model(edits))
    assert connected(lambda self: "made", runner) == "made" and runner.corrigenda is edits
    key = keys(edits)[1]
    runner.requests = {
        "a": SimpleNamespace(num_prompt_tokens=3, sampling_params=sampling(key)),
        "b": SimpleNamespace(num_prompt_tokens=5, sampling_params=sampling(None)),
        "c": SimpleNamespace(num_prompt_tokens=2, sampling_params=sampling("unknown")),
    }
    runner.input_batch = SimpleNamespace(
        num_reqs=3, req_ids=["b", "a", "c", None], num_computed_tokens_cpu=np.array([0, 2, 0, 9], dtype=np.int32)
    )
    runner.query_start_loc = SimpleNamespace(np=np.array([0, 5, 7, 9, 9], dtype=np.int32))
    described(lambda self, input_ids: None, runner, input_ids=torch.zeros(9, dtype=torch.int32))
    place = edits.memory.place(key)
    assert edits.context.token_routes(9).tolist() == [-1] * 5 + [place] * 2 + [-1] * 2
    # Rows have moved and one request is new; its slot is that of a request that is no longer computed.
    runner.requests |= {name: runner.requests["a"] for name in "de"}
    runner.input_batch.req_ids = ["d", "e", "a", None]
    runner.input_batch.num_computed_tokens_cpu = np.array([0, 0, 4, 9])
    runner.query_start_loc.np = np.array([0, 3, 6, 7, 7])
    described(lambda self, input_ids: None, runner, input_ids=torch.zeros(9, dtype=torch.int32))
    assert edits.context.token_routes(7).tolist() == [-1, -1, place, -1, -1, place, place]
    assert len(edits.slots) == 3 and "b" not in edits.slots


def test_a_request_that_is_over_holds_no_rows_and_leaves_its_id_to_another(config):
    edits = WorkerEdits(config)
    runner = SimpleNamespace(corrigenda=edits)
    worker = EditsWorker()
    worker.model_runner = runner
    key, *others = keys(edits)

    def step(finished, new):
        request = SimpleNamespace(req_id="a")
        output = SimpleNamespace(finished_req_ids=set(finished), scheduled_new_reqs=[request] * new)
        assert renewed(lambda self, scheduler_output: "updated", runner, output) == "updated"

    def described_as(tokens, key):
        edits.describe(["a"], np.array([0]), np.array([3]), lambda request: request_info(tokens, sampling(key)))
        return edits.context.token_routes(3).tolist()

    place = edits.memory.place(key)
    step([], new=1)
    assert described_as(3, key) == [-1, -1, place]
    assert worker.corrigenda_keep(others) == 0
    step(["a", "never seen"], new=1)
    assert described_as(2, others[0]) == [-1, *[edits.memory.place(others[0])] * 2]
    assert worker.corrigenda_keep(others) == 1
    step(["a"], new=0)
    assert worker.corrigenda_keep([]) == len(others) and len(edits.slots) == 0
    renewed(lambda self, scheduler_output: None, SimpleNamespace(), None)  # a server without edits


def test_the_second_runner_keeps_decisions_beside_its_requests(config):
    class State:
        def __init__(self, vllm_config, model, encoder_cache, device):
            self.removed, self.seen = [], 0

        def add_request(self, req_index, new_req_data):
            self.added = new_req_data.req_id

        def remove_request(self, req_id):
            self.removed.append(req_id)

        def preprocess_state(self, input_batch, block_tables):
            self.seen += 1

    edits = WorkerEdits(config)
    made = edited_state(lambda vllm_config, model: State, config, Model(edits))
    state = made(config, Model(edits), None, "cpu")
    key = keys(edits)[0]
    # As after preemption: the prefill holds generated tokens, but the prompt is as long as it was.
    state.add_request(0, SimpleNamespace(req_id="a", prompt_len=3, sampling_params=sampling(key)))
    state.add_request(1, SimpleNamespace(req_id="b", prompt_len=2, sampling_params=sampling(None)))
    batch = SimpleNamespace(
        num_reqs=2,
        req_ids=["b", "a"],
        num_computed_tokens_np=np.array([0, 0]),
        query_start_loc_np=np.array([0, 2, 7]),
        input_ids=torch.zeros(7, dtype=torch.int32),
    )
    state.preprocess_state(batch, None)
    place = edits.memory.place(key)
    assert edits.context.token_routes(7).tolist() == [-1, -1, -1, -1, place, place, place]
    state.remove_request("a")
    assert state.removed == ["a"] and "a" not in edits.slots and state.seen == 1 and state.added == "b"
    plain = SimpleNamespace(additional_config={})
    assert edited_state(lambda vllm_config, model: State, plain, None) is State


def test_a_worker_loads_and_keeps(config, folder, tmp_path):
    edits = WorkerEdits(config)
    worker = EditsWorker()
    worker.model_runner = SimpleNamespace(corrigenda=edits)
    more = store(tmp_path / "more", [SHARED[1].__class__("Who leads Vantrello Foods?", "Ines Okafor", id="e")])
    other = WorkerEdits(
        SimpleNamespace(**{**vars(config), "additional_config": {**config.additional_config, CONFIG: str(more)}})
    )
    (key,) = keys(other)
    assert "changed" in worker.corrigenda_load(str(more), {"0" * 24: 1})["error"]
    seq = next(iter(_numbers(more)))
    assert worker.corrigenda_load(str(more), {key: seq}) == {"loaded": 1}
    assert worker.corrigenda_load(str(more), {key: seq}) == {"loaded": 0}
    edits.slots.start("running", 2, edits.memory.place(key))
    kept = keys(edits)[:1]
    assert worker.corrigenda_keep(kept) == len(SHARED) - 1 and keys(edits) == [*kept, key]
    # By the second runner, and on a stage of a pipeline that has not the layer.
    worker.model_runner = SimpleNamespace(model_state=SimpleNamespace(corrigenda=edits))
    assert worker.corrigenda_load(str(more), {key: seq}) == {"loaded": 0}
    worker.model_runner = SimpleNamespace(model_state=SimpleNamespace(corrigenda=None))
    assert worker.corrigenda_keep([]) == 0 and worker.corrigenda_load("nowhere", {"k": 1}) == {"loaded": 0}


def _numbers(folder):
    from corrigenda.editing.store.store import EditStore

    opened = EditStore.open(folder)
    numbers = opened.history.applied()
    opened.close()
    return numbers


def test_a_worker_reads_folders_of_several_row_forms(config, folder, tmp_path):
    """What the layer adds for an edit are the bits of a worker that has its folder alone."""
    small = store(
        tmp_path / "small",
        [Edit("Who leads Vantrello Foods?", "Lutz", id="e")],
        key_dimensions=32,
        value_dtype="int8",
    )

    def worker(*folders):
        settings = {**config.additional_config, CONFIG: {"edits": [str(path) for path in folders]}}
        return WorkerEdits(SimpleNamespace(**{**vars(config), "additional_config": settings}))

    layer, x = nn.Linear(160, 64), torch.randn(3, 160)

    def added(edits, key):
        edited = Model(edits).layer
        edited.load_state_dict(layer.state_dict())
        edits.describe([key], np.array([0]), np.array([3]), lambda request: request_info(2, sampling(key)))
        with torch.no_grad():
            return edited(x)

    both = worker(folder, small)
    assert len(both.memory.banks.forms()) == 2 and len(both.memory) == len(SHARED) + 1
    for alone in (worker(folder), worker(small)):
        for key in keys(alone):
            found, expected = added(both, key), added(alone, key)
            assert torch.equal(found, expected) and torch.equal(found[0], layer(x)[0])
            assert (found[1:] != layer(x)[1:]).any(1).all()


def test_another_models_weights_are_refused(config):
    edits = WorkerEdits(config)
    embedding, norm, _ = edits.sample.chunk(3)

    class Body(nn.Module):
        def __init__(self, embedding, norm):
            super().__init__()
            self.embed_tokens = nn.Embedding(700, 64)
            self.norm = nn.LayerNorm(64, bias=False)
            with torch.no_grad():
                flat = self.embed_tokens.weight.reshape(-1)
                flat[torch.linspace(0, flat.numel() - 1, len(embedding), dtype=torch.float64).long()] = embedding
                self.norm.weight[torch.linspace(0, 63, len(norm), dtype=torch.float64).long()] = norm

    class Whole(nn.Module):
        def __init__(self, *parts):
            super().__init__()
            self.model = Body(*parts)

    edits.check_weights(Whole(embedding, norm), 700)
    for parts in ((embedding * 1.5, norm), (embedding, norm * 1.5)):
        with pytest.raises(CorrigendaError, match="its weights differ"):
            edits.check_weights(Whole(*parts), 700)
    edits.check_weights(Whole(embedding * 1.5, norm), None)  # a shard of an embedding has other places


def test_a_model_without_the_layer_is_refused(config):
    runner = SimpleNamespace(vllm_config=config, model=nn.Linear(2, 2))
    with pytest.raises(CorrigendaError, match=r"row-parallel mlp\.down_proj"):
        connected(lambda self: None, runner)
    config.parallel_config.pipeline_parallel_size = 2
    connected(lambda self: None, runner)
    assert runner.corrigenda is None
    config.additional_config = {}
    bare = SimpleNamespace(vllm_config=config, model=None)
    connected(lambda self: None, bare)
    assert not hasattr(bare, "corrigenda")


def test_what_a_request_says():
    assert request_info(7, sampling("k")) == (7, "k", None)
    assert request_info(7, sampling(None)) == (7, None, None) == request_info(7, None)


def test_a_plan_comes_with_its_request_and_its_tokens_lead_through_it(config):
    """As JSON, which is how it goes to another process; the tokens of a pass are on the device, and more may follow."""
    edits = WorkerEdits(config)
    key = keys(edits)[0]
    plan = AnswerPlan(((0, 5, 1), (1, 6, 2)), length=2, ends=True, numeric=False, bare=0, start=0)
    given = sampling(key)
    given.extra_args[CONFIG]["answer"] = json.loads(json.dumps(plan._asdict()))
    info = request_info(3, given)
    rows = []
    for past, tokens in ((0, [8, 8, 8, 0]), (3, [5, 0]), (4, [6, 0]), (5, [9, 0])):
        count = 3 if past == 0 else 1
        edits.describe(["a"], np.array([past]), np.array([count]), lambda request: info, torch.tensor(tokens))
        place, row = edits.context.told_rows(count)
        rows.append((row[-1].item(), place[-1].item() == edits.memory.place(key)))
    assert rows == [(0, True), (1, True), (2, True), (-1, False)]
    edits.end(["a"])
    assert not edits.context.progress
