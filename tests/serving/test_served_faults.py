"""Nothing ends a server: rows follow what can be seen, and what raises in a pass ends that pass's requests alone."""

from __future__ import annotations

import shutil

import pytest
from batched import EDITED, NEW, PLAIN, PROMPTS, Running, config, tokens
from served import OF_ACME, SHARED, Served, store
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import Edit, EditedModel
from corrigenda.serving import continuous

pytestmark = pytest.mark.usefixtures("few_background_prompts")

CAPITAL = PROMPTS[0]


def taken_back(served, other, edit):
    """Load another folder whose edit hides one that is served, and take it out again."""
    served.load(other)
    return served.undo(edit, store=other)


def test_an_edit_that_another_folders_had_hidden_answers_again(serve, folders, tmp_path, alone):
    """The second folder's is about the same fact; its undo ended the server, for the first one's rows were gone."""
    other = store(tmp_path / "other", OF_ACME[:1])
    served = serve({"edits": folders / "shared", "root": tmp_path})
    running = Running(served)
    rows = served.encode(PROMPTS)
    served.load(other)
    assert running.ask(rows[0]) == alone(rows[:1], edits="acme")[0]
    served.undo("a", store=other)
    assert [running.ask(row) for row in rows] == alone(rows)
    assert served.why(CAPITAL)["edit"] == "a" and served.catalogue.admit(rows[0]).edit.store == folders / "shared"


def test_an_edit_that_a_copy_of_its_store_had_superseded_answers_again(serve, folders, tmp_path, alone):
    copy = tmp_path / "copy"
    shutil.copytree(folders / "shared", copy)
    writing = EditedModel.from_pretrained(tiny_model(), copy, tokenizer=tiny_tokenizer())
    writing.write_into(copy)
    writing.edit(Edit(SHARED[0].prompt, "Port Adlen", id="later"))
    writing.detach()
    writing.store.close()
    served = serve({"edits": folders / "shared", "root": tmp_path})
    running = Running(served)
    (row,) = served.encode([CAPITAL])
    served.load(copy)
    assert served.catalogue.admit(row).edit.id == "later"
    served.undo("later", store=copy)
    assert running.ask(row) == alone([row])[0]


@pytest.mark.parametrize("hides", ["other", "copy"])
def test_every_edit_that_can_be_seen_has_its_rows_after_any_change(folders, tmp_path, hides):
    """The order in which a stack loads and drops rows, which vLLM's workers follow too."""
    other = store(tmp_path / "other", OF_ACME[:1]) if hides == "other" else tmp_path / "copy"
    if hides == "copy":
        shutil.copytree(folders / "shared", other)
    served = Served(folders / "shared")
    (name, *_) = [edit.id for edit in SHARED]
    changes = [
        lambda: served.catalogue.read([(None, other)]),
        lambda: served.catalogue.undo(name, None, other),
        lambda: served.catalogue.read([(None, other), (None, folders / "shared")]),
    ]
    for change in changes:
        served.take(change())
        assert all(served.memory.place(edit.key) >= 0 for edit in served.catalogue.served())


def test_a_request_whose_rows_are_missing_is_the_base_models_and_says_so(serve, folders, alone, caplog):
    prometheus = pytest.importorskip("prometheus_client")
    served = serve(folders / "shared")
    rows = served.encode(PROMPTS)
    gone = served.catalogue.admit(rows[0]).key
    served.memory.keep(served.catalogue.keys() - {gone})  # by force: nothing that a server does leads here

    def lost():
        return prometheus.REGISTRY.get_sample_value("corrigenda_requests_total", {"outcome": "lost", "tenant": ""}) or 0

    before = lost()
    output, found = served.generate_batch(
        rows, provenance=True, max_new_tokens=NEW, continuous_batching_config=config()
    )
    assert tokens(output) == [*alone(rows[:1], edits=None), *alone(rows[1:])]
    assert [one.lost for one in found.values()] == [True] + [False] * 5
    assert next(iter(found.values())).edit is None
    assert lost() == before + 1
    assert f"the rows of edit {gone} are missing" in caplog.text


SEAMS = ["schedule_batch", "restore_scheduled_requests", "get_model_kwargs", "compute_batch", "prepare_batch_update"]


@pytest.mark.parametrize("seam", SEAMS)
def test_what_raises_in_a_pass_fails_that_passs_requests_alone(serve, folders, alone, monkeypatch, seam, caplog):
    """It ended transformers' worker, and every later request got "the background thread died"."""
    served = serve(folders / "shared")
    running = Running(served)
    processor = running.manager.batch_processor
    parts = (processor.inputs_and_outputs, processor.model_runner, processor.scheduler, processor.offloading_manager)
    owner = next(part for part in parts if hasattr(part, seam))
    rows = served.encode([EDITED[0], PLAIN[0]])

    def breaks(*args, **kwargs):
        monkeypatch.undo()
        raise KeyError("what nobody thought of")

    with running.manager.pause():
        names = [running.manager.add_request(row, max_new_tokens=NEW) for row in rows]
        monkeypatch.setattr(owner, seam, breaks)
    failed = [running.manager.get_result(timeout=60) for _ in names]
    assert {output.request_id for output in failed} == set(names)
    assert all("failed (KeyError): ask again" in output.error for output in failed)
    assert "what nobody thought of" in caplog.text  # the log has it, the client has not
    assert not any(allocator.block_table for allocator in processor.cache.cache_allocators.values())
    assert running.manager.is_running() and [running.ask(row) for row in rows] == alone(rows)


def test_a_description_that_raises_fails_its_pass_alone(serve, folders, alone, monkeypatch):
    served = serve(folders / "shared")
    running = Running(served)
    (row,) = served.encode([CAPITAL])

    def broken(self, *args):
        monkeypatch.undo()
        raise RuntimeError("no room for a description")

    with running.manager.pause():
        name = running.manager.add_request(row, max_new_tokens=NEW)
        monkeypatch.setattr(continuous.Slots, "describe", broken)
    output = running.manager.get_result(timeout=60)
    assert output.request_id == name and "RuntimeError" in output.error
    assert running.ask(row) == alone([row])[0]


def test_a_pass_that_raises_after_some_were_answered_fails_the_others(serve, folders, alone, monkeypatch):
    served = serve(folders / "shared")
    running = Running(served)
    rows = served.encode(PROMPTS[:2])
    router = running.manager.output_router
    delivered = router.deliver_batch

    def once(outputs):
        monkeypatch.undo()
        delivered(outputs)
        raise RuntimeError("behind the delivery")

    with running.manager.pause():
        short = running.manager.add_request(rows[0], max_new_tokens=1)
        long = running.manager.add_request(rows[1], max_new_tokens=50, eos_token_id=-1)
        monkeypatch.setattr(
            router, "deliver_batch", lambda outputs: running.manager._corrigenda._on_results(once, outputs)
        )
    found = {output.request_id: output for output in (running.manager.get_result(timeout=60) for _ in range(2))}
    assert found[short].error is None and "RuntimeError" in found[long].error
    assert running.manager.output_router.output_queue.empty()
    assert running.ask(rows[0]) == alone(rows[:1])[0]


def test_an_error_without_requests_ends_the_worker(serve, folders, monkeypatch):
    """Nobody would be told of it, and it would come again."""
    served = serve(folders / "shared")
    running = Running(served)
    monkeypatch.setattr(running.manager.batch_processor, "prepare_next_batch", lambda: 1 / 0)
    running.manager._generation_thread.join(60)
    assert not running.manager.is_running()
