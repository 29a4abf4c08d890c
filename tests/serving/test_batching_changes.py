"""A served model in transformers: edits that change while requests are answered, `generate`, and the patch."""

from __future__ import annotations

import gc
import inspect
import logging
import threading
import time
import weakref

import pytest
import torch
from batched import EDITED, IDS, NEW, PLAIN, PROMPTS, Running, batch, config, tokens
from served import OF_ACME, SHARED, store
from tiny import tiny_model, tiny_tokenizer
from transformers import GenerationConfig, LlamaForCausalLM
from transformers.generation.continuous_batching import cache, continuous_api, input_outputs, model_runner, scheduler
from transformers.generation.continuous_batching.cache_allocators import cache_allocator
from transformers.generation.continuous_batching.requests import RequestState

from corrigenda.editing import CorrigendaError, EditedModel
from corrigenda.editing.store.store import EditStore
from corrigenda.serving import ServingError
from corrigenda.serving.batching import ServedModel
from corrigenda.serving.requests import ServedRequest

pytestmark = pytest.mark.usefixtures("few_background_prompts")


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
        assert running.manager._corrigenda._requests.keys() >= set(names)
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


def test_a_name_is_taken_while_the_scheduler_takes_its_request_in(serve, folders):
    served = serve(folders / "shared")
    running = Running(served)
    (row,) = served.encode(EDITED[:1])
    scheduler, refused = running.manager._corrigenda._scheduler, []

    def slowly_in(original, state):
        with pytest.raises(ServingError, match='id "mine" is in flight'):
            running.manager.add_request(row, request_id="mine")
        refused.append(state.request_id)
        original(state)

    inner = scheduler.add_waiting_request.__wrapped__
    scheduler.add_waiting_request = lambda state: running.manager._corrigenda._on_waiting(
        lambda state: slowly_in(inner, state), state
    )
    running.manager.add_request(row, request_id="mine", max_new_tokens=2)
    assert running.result("mine") and refused == ["mine"]


def test_two_managers_at_once(serve, folders, alone):
    """Each describes its passes to the one layer: no pass of the other may come between."""
    served = serve(folders / "shared")
    asked = {"edited": served.encode(EDITED * 4), "plain": served.encode(PLAIN * 4)}
    found = {}

    def ask(name):
        found[name] = tokens(batch(served, asked[name]))

    threads = [threading.Thread(target=ask, args=(name,)) for name in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: alone(rows) for name, rows in asked.items()}


def test_rows_that_are_still_here_when_they_come_again_stay(serve, tmp_path, monkeypatch):
    """Those of a request in flight are not read anew; it ends before the change is made."""
    folder = store(tmp_path / "own", SHARED)
    served = serve(folder)
    (row,) = served.encode(EDITED[1:2])
    flight = served.requests.admit("in flight", row, None)
    served.undo("c")
    writing = EditStore.open(folder, write=True)
    writing.redo(writing.selected(["c"]))
    writing.close()
    read = served.memory.read

    def then_it_ends(*given):
        records = read(*given)
        flight.ended = True
        served.requests.drop_unread_rows()
        return records

    monkeypatch.setattr(served.memory, "read", then_it_ends)
    assert served.load(folder)["added"] == ["c"]
    assert served.requests.admit("later", row, None).place >= 0


def test_a_manager_that_stops_lets_its_cache_go(serve, folders, alone):
    served = serve(folders / "shared")
    running = Running(served)
    rows = served.encode(EDITED[:1])
    for _ in range(2):
        assert running.ask(rows[0]) == alone(rows)[0]
        kept = weakref.ref(running.manager.batch_processor.cache)
        running.manager.stop()
        gc.collect()
        assert kept() is None
        running.manager.start()
        while running.manager.batch_processor is None:
            time.sleep(0.01)


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
@pytest.mark.parametrize("side", ["left", "right"])
def test_generate(serve, folders, alone, options, side):
    served = serve({"edits": folders / "shared", "tenants": {"acme": folders / "acme"}})
    running = Running(served)
    rows = served.encode(PROMPTS)
    width, pad = max(map(len, rows)), served.tokenizer.pad_token_id
    padding = [[pad] * (width - len(row)) for row in rows]
    ids = torch.tensor([empty + row if side == "left" else row + empty for empty, row in zip(padding, rows)])
    owners = ["acme", *[None] * (len(rows) - 1)]
    output, found = served.generate(
        ids, tenants=owners, provenance=True, max_new_tokens=NEW, do_sample=False, **options
    )
    assert torch.equal(output[:, :width], ids)
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
    with pytest.raises(ServingError, match="its layers are 4, not 3"):
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
        (continuous_api.ContinuousBatchingManager, "add_request", ["input_ids", "request_id", "max_new_tokens"]),
        (continuous_api.ContinuousBatchingManager, "_create_batch_processor", []),
        (continuous_api.ContinuousBatchingManager, "_generation_loop_body", ["batch_processor"]),
        (continuous_api.ContinuousBatchingManager, "pause", []),
        (continuous_api.ContinuousBatchingManager, "is_running", []),
        (continuous_api.ContinuousBatchProcessor, "_handle_request_error", ["error", "state"]),
        (continuous_api.ContinuousBatchProcessor, "fail_all_requests", ["error"]),
        (continuous_api.OutputRouter, "deliver_batch", ["outputs"]),
        (scheduler.Scheduler, "add_waiting_request", ["state"]),
        (scheduler.FIFOScheduler, "schedule_batch", ["token_budget", "cache_budget"]),
        (scheduler.Scheduler, "finish_request", ["request_id"]),
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
    flight = ServedRequest(None, -1, 2)
    state._corrigenda = flight
    assert state.fork("r__child#0")._corrigenda is flight
