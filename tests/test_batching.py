"""A served model in transformers' continuous batching: every sequence is answered as if it had come alone."""

from __future__ import annotations

import inspect
import logging
import threading
import time

import pytest
import torch
from cases import same_bits
from served import OF_ACME, SHARED, store
from tiny import tiny_model, tiny_tokenizer
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaForCausalLM
from transformers.generation.continuous_batching import cache, continuous_api, input_outputs, model_runner, scheduler
from transformers.generation.continuous_batching.cache_allocators import cache_allocator
from transformers.generation.continuous_batching.requests import RequestState

from corrigenda.editing import CorrigendaError, EditedModel
from corrigenda.editing.store.store import EditStore
from corrigenda.serving import ServingError, continuous
from corrigenda.serving.batching import ServedModel

pytestmark = pytest.mark.usefixtures("few_background_prompts")

EDITED = ["Zubrowka has which capital?", "What does Kmelt make?", "Who founded the Krellin museum?"]
PLAIN = ["Why is the sky blue?", "Name three sorts of cheese and a wine that goes well with one of them.", "Hm"]
PROMPTS = [EDITED[0], PLAIN[0], EDITED[1], PLAIN[1], EDITED[2], PLAIN[2]]
IDS = ["a", None, "c", None, "b", None]
NEW = 10


@pytest.fixture(scope="module")
def folders(few_background_prompts, tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    store(root / "shared", SHARED)
    store(root / "acme", OF_ACME)
    return root


@pytest.fixture
def serve():
    """`ServedModel` of a tiny model, taken off again after the test, with whatever still runs on it."""
    served = []

    def build(edits, model=None):
        served.append(ServedModel(model or tiny_model(), tiny_tokenizer(), edits))
        return served[-1]

    yield build
    for one in served:
        for requests in list(one._managers):
            if requests.running:
                requests.manager.stop(hard_stop=True)
        one.detach()


@pytest.fixture(scope="module")
def alone(folders):
    """What each prompt is answered when it comes alone, whole, to an edited model; `edits` None: to the base model."""
    known = {}

    def answer(rows, new=NEW, edits="shared"):
        if edits not in known:
            path = None if edits is None else folders / edits
            known[edits] = EditedModel.from_pretrained(tiny_model(), path, tokenizer=tiny_tokenizer())
        edited = known[edits]
        return [
            edited.generate(torch.tensor([row]), max_new_tokens=new, do_sample=False)[0, len(row) :].tolist()
            for row in rows
        ]

    return answer


def config(**settings):
    return ContinuousBatchingConfig(**{"max_batch_tokens": 64, "num_blocks": 128, "page_size": 8, **settings})


def tokens(outputs):
    assert all(output.error is None for output in outputs.values())
    return [output.generated_tokens for output in outputs.values()]


def batch(served, rows, new=NEW, generation=None, **settings):
    return served.generate_batch(
        rows, max_new_tokens=new, generation_config=generation, continuous_batching_config=config(**settings)
    )


class Running:
    """A manager that goes on running, and answers as they come."""

    def __init__(self, served, **settings):
        self.manager = served.model.init_continuous_batching(
            generation_config=GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=2),
            continuous_batching_config=config(**settings),
        )
        self.manager.start()
        self.finished = {}
        while self.manager.batch_processor is None:  # it seeds torch's generator, which tiny models are made with
            time.sleep(0.01)

    def ask(self, row, **options):
        name = self.manager.add_request(row, **{"max_new_tokens": NEW, **options})
        return self.result(name)

    def result(self, name):
        limit = time.monotonic() + 60
        while name not in self.finished and time.monotonic() < limit:
            self.next(1)
        assert name in self.finished, f"{name} was not answered"
        return self.finished.pop(name)

    def next(self, timeout):
        """The name in the next result. Whoever asks for one by name spins over all others, and starves the passes."""
        found = self.manager.get_result(timeout=timeout)
        if found is not None and found.is_finished():
            assert found.error is None
            self.finished[found.request_id] = found.generated_tokens
        return found and found.request_id


# The same answer however requests are packed


@pytest.mark.parametrize(
    "settings",
    [
        {"max_batch_tokens": 512},
        {"max_batch_tokens": 7},
        {"max_batch_tokens": 13, "page_size": 4},
        {"max_batch_tokens": 16, "scheduler_type": "prefill_first"},
        {"allow_block_sharing": False},
        {"max_requests_per_batch": 2, "max_batch_tokens": 16},
    ],
    ids=str,
)
def test_a_mixed_batch_answers_as_each_prompt_alone(serve, folders, alone, settings):
    served = serve(folders / "shared")
    rows = served.encode(PROMPTS)
    expected = alone(rows)
    base = alone(rows, edits=None)
    assert [a == b for a, b in zip(expected, base)] == [edit is None for edit in IDS]
    outputs, found = served.generate_batch(
        rows, max_new_tokens=NEW, provenance=True, continuous_batching_config=config(**settings)
    )
    assert tokens(outputs) == expected
    assert [one.edit and one.edit.id for one in found.values()] == IDS and list(found) == list(outputs)
    assert all((one.margin >= 0) == (one.edit is not None) for one in found.values())


def test_transformers_own_generate_batch_is_edited_too_and_plain_forwards_are_not(serve, folders, alone):
    served = serve(folders / "shared")
    rows = served.encode(PROMPTS)
    assert tokens(served.model.generate_batch(rows, max_new_tokens=NEW, continuous_batching_config=config())) == alone(
        rows
    )
    base = tiny_model()
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row])
            assert same_bits(served.model(ids).logits, base(ids).logits)
            assert torch.equal(served.model.generate(ids, max_new_tokens=4), base.generate(ids, max_new_tokens=4))


def shared_prefix(served, length=48):
    """Prompts that begin with the same tokens, the template's question being the last thing in them."""
    filler = (served.tokenizer("All of this is said before anything is asked. " * 9)["input_ids"])[:length]
    return [filler + row for row in served.encode(PROMPTS)]


@pytest.mark.parametrize("budget", [16, 512])
def test_prompts_that_share_blocks(serve, folders, alone, budget, monkeypatch):
    served = serve(folders / "shared")
    rows = shared_prefix(served)
    hits = []
    search = cache.PagedAttentionCache.search_prefix_match
    monkeypatch.setattr(
        cache.PagedAttentionCache, "search_prefix_match", lambda *given: hits.append(search(*given)) or hits[-1]
    )
    running = Running(served, max_batch_tokens=budget)
    expected = alone(rows)
    assert [running.ask(row) for row in rows] == expected
    assert sum(hit >= 48 for hit in hits) == len(rows) - 1
    # Asked again, all but a prompt's last block is found, an edited one's too.
    hits.clear()
    assert [running.ask(row) for row in rows] == expected
    assert all(hit >= (len(row) - 1) // 8 * 8 for hit, row in zip(hits, rows))
    names = running.manager.add_requests(rows, max_new_tokens=NEW)
    assert [running.result(name) for name in names] == expected


@pytest.mark.parametrize("guarded", [True, False])
def test_an_edited_answer_is_read_again_as_the_base_model_reads_it(serve, folders, alone, guarded, monkeypatch):
    """The next turn of a conversation repeats the answer, whose keys and values were made under the edit."""
    if not guarded:
        monkeypatch.setattr(
            continuous.BatchedRequests, "_mark", lambda self, original, *given: original(*given), raising=True
        )
    served = serve(folders / "shared")
    running = Running(served, page_size=4)
    differ = 0
    for prompt in EDITED:
        (first,) = served.encode([prompt])
        answer = running.ask(first)
        assert [answer] == alone([first])
        second = first + answer + served.tokenizer("\n")["input_ids"] + served.encode([PLAIN[0]])[0]
        differ += [running.ask(second)] != alone([second])
    assert differ == 0 if guarded else differ > 0


def test_an_unedited_answer_is_shared_with_the_next_turn(serve, folders, alone):
    served = serve(folders / "shared")
    running = Running(served, page_size=4)
    (first,) = served.encode([PLAIN[1]])
    answer = running.ask(first)
    second = first + answer + served.encode([EDITED[0]])[0]
    allocator = next(iter(running.manager.batch_processor.cache.cache_allocators.values()))
    assert len(allocator.match_prefix_blocks(second)) == (len(first) + len(answer) - 1) // 4
    assert [running.ask(second)] == alone([second])


# Requests that fork, lose their cache, or are more than the batch holds


@pytest.mark.parametrize("blocks", [128, 16])
def test_forks_are_answered_as_their_parents(serve, folders, alone, blocks):
    served = serve(folders / "shared")
    rows = served.encode(PROMPTS)
    generation = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=2)
    generation.num_return_sequences = 4  # which the constructor refuses of a greedy one
    outputs = batch(served, rows, generation=generation, num_blocks=blocks, max_requests_per_batch=5)
    assert tokens(outputs) == [answer for answer in alone(rows) for _ in range(4)]


def test_a_fork_that_outlives_its_parent_keeps_its_rows(serve, folders, alone, monkeypatch):
    describe, forks = continuous.BatchedRequests._describe, set()

    def checked(self, *given):
        describe(self, *given)
        for name, state in self._scheduler.active_requests.items():
            assert not state._corrigenda.ended
            if "__child#" in name and name.partition("__child#")[0] not in self._scheduler.active_requests:
                forks.add(name)

    monkeypatch.setattr(continuous.BatchedRequests, "_describe", checked)
    served = serve(folders / "shared")
    rows = served.encode(PROMPTS[:1])
    generation = GenerationConfig(max_new_tokens=1, do_sample=False, eos_token_id=2)
    generation.num_return_sequences = 4
    outputs = batch(served, rows, new=1, generation=generation, max_requests_per_batch=1)
    assert forks and tokens(outputs) == alone(rows, 1) * 4


def test_requests_that_lose_their_cache_keep_their_edit(serve, folders, alone, monkeypatch):
    resets = []
    renew = RequestState.create_equivalent_initial_request
    monkeypatch.setattr(
        RequestState, "create_equivalent_initial_request", lambda self: resets.append(self.request_id) or renew(self)
    )
    served = serve(folders / "shared")
    rows = served.encode(PROMPTS)
    outputs = batch(served, rows, new=40, num_blocks=14, safety_margin=0.0)
    assert resets and tokens(outputs) == alone(rows, 40)


def test_a_renewed_request_does_not_take_an_unedited_ones_blocks_for_its_answer(serve, folders, alone):
    """What another request read in its prompt are the same tokens, but not the same keys and values."""
    served = serve(folders / "shared")
    running = Running(served, page_size=4)
    (row,) = served.encode(EDITED[:1])
    (answer,) = alone([row])
    running.ask(row + answer + served.encode(PLAIN[:1])[0])
    requests = running.manager._corrigenda
    found = []
    requests._flights["renewed"] = served.admit("renewed", row, None)
    found.append(running.manager.batch_processor.cache.search_prefix_match("renewed", row + answer))
    assert found == [(len(row) - 1) // 4 * 4]


# Tenants


def test_each_request_is_its_tenants(serve, folders, alone):
    served = serve({"edits": folders / "shared", "tenants": {"acme": folders / "acme"}})
    rows = served.encode(["Zubrowka has which capital?", "Who leads Vantrello Foods?"])
    owners = ["acme", None, "acme", None]
    outputs, found = served.generate_batch(
        [rows[0], rows[0], rows[1], rows[1]],
        tenants=owners,
        provenance=True,
        max_new_tokens=NEW,
        continuous_batching_config=config(),
    )
    own, shared = alone(rows, edits="acme"), alone(rows)
    assert tokens(outputs) == [own[0], shared[0], own[1], shared[1]]
    assert [one.tenant for one in found.values()] == owners
    running = Running(served)
    assert running.ask(rows[0], tenant="acme") == own[0]
    assert running.ask(rows[0]) == shared[0]
    with pytest.raises(ServingError, match='no tenant "other"'):
        running.ask(rows[0], tenant="other")
    with pytest.raises(ServingError, match='no tenant "other"'):
        served.generate_batch(rows, tenants="other")
    with pytest.raises(CorrigendaError, match="2 prompts and 1 tenants"):
        served.generate_batch(rows, tenants=["acme"])


# Changes while requests are answered


def slowly(running, rows):
    """Names of requests that are in the middle of their answers."""
    names = [running.manager.add_request(row, max_new_tokens=150, eos_token_id=-1, streaming=True) for row in rows]
    seen = set()
    while seen != set(names):
        seen.add(running.next(30))
    return names


def test_what_is_in_flight_keeps_its_edit(serve, tmp_path, alone):
    folder = store(tmp_path / "own", SHARED)
    served = serve(folder)
    running = Running(served, num_blocks=512)
    rows = served.encode([EDITED[1], PLAIN[0]])
    expected = batch_reference(folder, rows)
    names = slowly(running, rows)
    key = served.catalogue.admit(rows[0]).key
    with running.manager.pause():  # they are still being answered, on however slow a machine
        assert served.undo("c", author="me") == {"version": 2, "added": [], "removed": ["c"]}
        assert running.manager._corrigenda._flights.keys() >= set(names)
        assert key in served.memory._place
    assert running.ask(rows[0]) == alone(rows[:1], edits=None)[0]
    assert [running.result(name) for name in names] == expected
    assert running.ask(rows[1])  # a pass later
    assert key not in served.memory._place
    writing = EditStore.open(folder, write=True)
    writing.redo(writing.selected(["c"]))
    writing.close()
    assert served.load(folder) == {"version": 3, "added": ["c"], "removed": []}
    assert running.ask(rows[0]) == alone(rows[:1])[0]
    assert served.why(EDITED[1])["edit"] == "c" and served.version == 3 and len(served.served()) == 3


def batch_reference(folder, rows):
    edited = EditedModel.from_pretrained(tiny_model(), folder, tokenizer=tiny_tokenizer())
    options = {"max_new_tokens": 150, "do_sample": False, "eos_token_id": None}
    return [edited.generate(torch.tensor([row]), **options)[0, len(row) :].tolist() for row in rows]


def test_changes_from_several_threads_while_others_ask(serve, folders, tmp_path, alone):
    extra = store(tmp_path / "extra", OF_ACME[1:])
    served = serve({"edits": folders / "shared", "root": tmp_path})
    running = Running(served)
    rows = served.encode(PROMPTS)
    errors, done = [], threading.Event()

    def change():
        try:
            for number in range(6):
                served.load(extra, f"tenant {number}")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=change) for _ in range(2)]
    for thread in threads:
        thread.start()
    answers = [running.ask(row) for row in rows]
    for thread in threads:
        thread.join()
    done.set()
    assert not errors and served.version == 13
    assert answers == alone(rows) and [running.ask(row) for row in rows] == alone(rows)
    (leader,) = served.encode(["Who leads Vantrello Foods?"])
    assert running.ask(leader, tenant="tenant 3") == alone([leader], edits="acme")[0]


def test_a_queued_request_keeps_the_rows_that_it_was_promised(serve, tmp_path, alone):
    folder = store(tmp_path / "own", SHARED)
    served = serve(folder)
    (row,) = served.encode(EDITED[1:2])
    manager = served.model.init_continuous_batching(
        generation_config=GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=2),
        continuous_batching_config=config(),
    )
    name = manager.add_request(row)  # nothing runs yet
    served.undo("c")
    manager.start()
    try:
        assert manager.get_result(name, timeout=60).generated_tokens == alone([row])[0]
    finally:
        manager.stop()


def test_a_request_that_is_in_flight_keeps_its_name(serve, folders):
    served = serve(folders / "shared")
    running = Running(served)
    (row,) = served.encode(EDITED[:1])
    manager = running.manager
    with manager.pause():
        manager.add_request(row, request_id="mine", max_new_tokens=200, eos_token_id=-1)
        with pytest.raises(ServingError, match='id "mine" is in flight'):
            manager.add_request(row, request_id="mine")
    assert running.result("mine")
    manager.add_request(row, request_id="mine")
    assert running.result("mine")


def test_each_edited_request_is_logged(serve, folders, caplog):
    served = serve({"edits": folders / "shared", "tenants": {"acme": []}})
    with caplog.at_level(logging.INFO, "corrigenda"):
        served.generate_batch(
            served.encode(PROMPTS[:2]), tenants="acme", max_new_tokens=1, continuous_batching_config=config()
        )
    (line,) = [record.getMessage() for record in caplog.records if record.name == "corrigenda"]
    assert line.startswith("request req_0 of acme: edit a (score 0.") and "version 1" in line


# `generate`


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"prefill_chunk_size": 3}], ids=str)
def test_generate(serve, folders, alone, options):
    served = serve({"edits": folders / "shared", "tenants": {"acme": folders / "acme"}})
    running = Running(served)
    rows = served.encode(PROMPTS)
    width, pad = max(map(len, rows)), served.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    owners = ["acme", *[None] * (len(rows) - 1)]
    output, found = served.generate(
        ids, tenants=owners, provenance=True, max_new_tokens=NEW, do_sample=False, **options
    )
    end = served.tokenizer.eos_token_id
    new = [row[width:].tolist() for row in output]
    new = [row[: row.index(end) + 1] if end in row else row for row in new]
    assert new == [alone(rows[:1], edits="acme")[0], *alone(rows)[1:]]
    assert [one.edit and one.edit.id for one in found] == IDS
    assert running.ask(rows[2]) == alone(rows[2:3])[0]


# The patch


def test_what_cannot_be_served_is_said_in_one_sentence(serve, folders, tmp_path):
    with pytest.raises(ServingError, match="its weights differ"):
        ServedModel(tiny_model(seed=1), tiny_tokenizer(), folders / "shared")
    with pytest.raises(ServingError, match="it has 4 layers, this one 3"):
        ServedModel(tiny_model(layers=3), tiny_tokenizer(), folders / "shared")
    served = serve(folders / "shared")
    for again in (ServedModel, EditedModel):
        with pytest.raises(CorrigendaError, match="already carries edits"):
            again(served.model, tiny_tokenizer(), folders / "shared")
    with pytest.raises(CorrigendaError, match="without async batching"):
        served.generate_batch([[5]], continuous_batching_config=config(use_async_batching=True))
    with pytest.raises(CorrigendaError, match="input_ids"):
        served.generate(max_new_tokens=2)
    given = config()
    batch(served, served.encode(PLAIN[:1]))
    assert given.use_async_batching is None  # the caller's own is left alone


def test_detach_gives_the_model_back_as_it_was(folders):
    model = tiny_model()
    modules, attributes = dict(model.named_modules()), set(vars(model))
    served = ServedModel(model, tiny_tokenizer(), folders / "shared")
    rows = served.encode(PROMPTS)
    outputs = served.generate_batch(
        rows, max_new_tokens=NEW, persistent_manager=True, continuous_batching_config=config()
    )
    manager = model._cached_continuous_batching_manager
    manager.start()
    with pytest.raises(CorrigendaError, match="stop its continuous batching"):
        served.detach()
    manager.stop(keep_for_next_session=True)
    assert served.detach() is model
    assert dict(model.named_modules()) == modules
    assert "_corrigenda" not in vars(manager) and "add_request" not in vars(manager)
    again = tokens(model.generate_batch(rows, max_new_tokens=NEW, persistent_manager=True))
    assert [a == b for a, b in zip(again, tokens(outputs))] == [edit is None for edit in IDS]
    model.destroy_cached_continuous_batching_manager()
    assert set(vars(model)) == attributes


def test_a_manager_that_was_there_before(serve, folders, alone):
    model = tiny_model()
    rows = [[5, 6, 7]]
    model.generate_batch(rows, max_new_tokens=2, persistent_manager=True, continuous_batching_config=config())
    served = serve(folders / "shared", model)
    rows = served.encode(PROMPTS)
    assert tokens(served.generate_batch(rows, max_new_tokens=NEW, persistent_manager=True)) == alone(rows)
    model.destroy_cached_continuous_batching_manager()
    assert tokens(batch(served, rows)) == alone(rows)


# What is wrapped is private: a release of transformers that changes it must show here


@pytest.mark.parametrize(
    "owner, name, first",
    [
        (continuous_api.ContinuousBatchingManager, "add_request", ["input_ids", "request_id"]),
        (continuous_api.ContinuousBatchingManager, "_create_batch_processor", []),
        (continuous_api.ContinuousBatchingManager, "pause", []),
        (continuous_api.ContinuousBatchingManager, "is_running", []),
        (scheduler.Scheduler, "add_waiting_request", ["state"]),
        (input_outputs.ContinuousBatchingIOs, "prepare_batch_tensors", ["requests_in_batch", "logits_processors"]),
        (model_runner.ModelRunner, "compute_batch", ["model", "batch_data"]),
        (cache.PagedAttentionCache, "search_prefix_match", ["request_id", "prompt_ids"]),
        (cache_allocator.CacheAllocator, "mark_complete_blocks", ["request_id", "token_ids", "new_new_blocks"]),
        (
            LlamaForCausalLM,
            "init_continuous_batching",
            ["generation_config", "continuous_batching_config", "workload_hints"],
        ),
    ],
)
def test_the_seams_are_where_they_were(owner, name, first):
    parameters = list(inspect.signature(getattr(owner, name)).parameters)[1:]
    assert parameters[: len(first)] == first


def test_states_of_requests_say_what_is_read_of_them():
    state = RequestState(request_id="r", initial_tokens=[1, 2], generated_tokens=[3])
    assert state.position_offset == 0 and state._true_initial_tokens == 0
    renewed = state.create_equivalent_initial_request()
    assert renewed.initial_tokens == [1, 2, 3] and renewed._true_initial_tokens == 2
    flight = continuous.Flight(None, 2)
    state._corrigenda = flight
    assert state.fork("r__child#0")._corrigenda is flight
