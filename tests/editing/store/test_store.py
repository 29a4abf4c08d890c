"""The memory as a view of the ledger: undo, redo, last write wins, resume, and readers beside a writer."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import time
from dataclasses import replace

import pytest
import torch
from cases import same_bits
from every_config import AGAIN, CONFIGS, EDITS, bits, broken_off, ids, killed_stream, same
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import AssociativeConfig, CorrigendaError, Edit, EditedModel
from corrigenda.editing.model.capacity import report
from corrigenda.editing.model.live import LiveEditor
from corrigenda.editing.store import check
from corrigenda.editing.store.exchange import merge
from corrigenda.editing.store.store import EditStore

pytestmark = pytest.mark.usefixtures("few_background_prompts")
every_method = pytest.mark.parametrize("method", list(CONFIGS))
some_methods = pytest.mark.parametrize("method", ["associative", "memoir batches", "wise retrieve"])


@pytest.fixture
def edited(wrap):
    """Builds an edited model that holds `edits`."""

    def build(method="associative", edits=EDITS, **options):
        model = wrap(tiny_model(), tiny_tokenizer(), CONFIGS[method])
        model.edit(edits, **options)
        return model

    return build


# Undo and redo


@every_method
def test_undo_gives_what_a_rebuild_without_gives(edited, load_edited, tmp_path, method):
    model = edited(method)
    whole = bits(model)
    base = model.decoder.down_proj(model.config.layer)
    model.undo(["b", "e"])
    assert ids(model) == ["a", "c", "d"]
    without = bits(model)
    model.save_pretrained(tmp_path / "without")
    same(without, bits(load_edited(tmp_path / "without")))
    model.redo("b")
    model.redo("e")
    same(whole, bits(model))
    model.undo(["a", "b", "c", "d", "e"])
    assert model.edits == [] and model.answer([EDITS[0].prompt])[0].edit is None
    if "memoir" in method:
        assert not model.method.memory.weight.any()
    if "wise" in method:
        assert not model.answer([EDITS[0].prompt])[0].provenance.applied
    model.redo(["e", "d", "c", "b", "a"])
    same(whole, bits(model))
    assert base is model.decoder.down_proj(model.config.layer)


@pytest.mark.parametrize("method", ["mask router", "memoir", "wise"])
def test_undo_of_all_gives_the_base_models_logits(edited, method):
    model = edited(method, EDITS[:2])
    model.undo(["a", "b"])
    tokens = torch.tensor([model.prompts.encode(EDITS[0].prompt)])
    options = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    after = model.generate(tokens, **options).logits
    before = model.detach().generate(tokens, **options).logits
    assert all(same_bits(a, b) for a, b in zip(after, before))


def test_undo_by_author_and_time(edited):
    model = edited(edits=EDITS[:2], author="ann")
    model.edit(EDITS[2:4], author="bob")
    time_of_c = model.store.history.find("c").body["time"]
    assert [s.id for s in model.undo(by="bob").edits] == ["c", "d"] and ids(model) == ["a", "b"]
    model.redo(since=time_of_c)
    assert ids(model) == ["a", "b", "c", "d"]
    with pytest.raises(CorrigendaError, match="not a time to select edits by"):
        model.undo(since="yesterday")
    assert ids(model) == ["a", "b", "c", "d"]


def test_the_name_of_before_still_works(edited, tmp_path):
    model = edited(edits=EDITS[:1])
    with pytest.warns(FutureWarning, match="`write_into`"):
        model.attach(tmp_path / "edits")
    assert model.store.directory == tmp_path / "edits"


@pytest.mark.parametrize("method", ["memoir", "wise"])
def test_an_edit_that_cannot_be_written_leaves_all_as_it_was(edited, monkeypatch, method):
    model = edited(method, EDITS[:3])
    before, count = bits(model), model.store.ledger.count

    def fail(*_):
        raise CorrigendaError("No.")

    monkeypatch.setattr(model.method, "_solve", fail)
    with pytest.raises(CorrigendaError, match="No"):
        model.edit(AGAIN)
    same(before, bits(model))
    assert model.store.ledger.count == count and ids(model) == ["a", "b", "c"]


# Last write wins


@pytest.mark.parametrize("method", ["associative", "memoir", "wise"])
def test_the_last_write_of_a_fact_wins(edited, method):
    model = edited(method, EDITS[:2])
    model.edit(AGAIN)
    assert ids(model) == ["b", "a2"]
    notices = [notice for notice in model.store.notices if "its own prompt" not in notice]  # too few steps for MEMOIR
    assert notices == ['Edit "a2" supersedes "a", which is about the same fact.']
    statuses = model.store.history.statuses()
    assert statuses[model.store.history.find("a").seq] == "superseded"
    model.undo("a2")
    assert ids(model) == ["a", "b"]
    same(bits(model), bits(edited(method, EDITS[:2])) if method != "associative" else bits(model))
    model.redo("a2")
    third = replace(AGAIN, id="a3", target="Gonf")
    model.edit(third)
    assert ids(model) == ["b", "a3"]
    model.undo("a2")
    assert ids(model) == ["b", "a3"]
    assert [model.store.history.edits[seq].id for seq in model.store.history.chain_of(2 + 1)] == ["a", "a2", "a3"]


def test_within_a_batch_and_by_policy(edited):
    model = edited(edits=[EDITS[0], AGAIN])  # one batch
    assert ids(model) == ["a2"]
    kept = edited(edits=[EDITS[0], AGAIN, EDITS[1]], on_conflict="keep")
    assert ids(kept) == ["a", "b"] and kept.store.history.declined_as("a2").kept == "a"
    told = []
    results = kept.edit([EDITS[2], replace(AGAIN, id="a0")], on_conflict="keep", on_progress=told.append)
    assert len(results) == 1 and results.declined == [(replace(AGAIN, id="a0"), "a")] == told[0].declined
    assert kept.store.notices == [
        f'Edit "{name}" is left out: "a", which is about the same fact, stays.' for name in ("a2", "a0")
    ]
    asked = []

    def ask(edit, rival):
        asked.append((edit.id, rival.id))
        return "supersede"

    kept.edit(replace(AGAIN, id="a3"), on_conflict=ask)
    assert asked == [("a3", "a")] and ids(kept) == ["b", "c", "a3"]
    with pytest.raises(CorrigendaError, match="on_conflict must be one of"):
        kept.edit(replace(AGAIN, id="a4"), on_conflict="what")


def test_the_same_tokens_with_another_target_are_the_same_fact_but_not_with_other_numbers(edited):
    model = edited(edits=[Edit("Who leads the Krellin museum?", "Anna", id="x"), Edit("Town 12 is in", "Lutz", id="t")])
    model.edit(Edit("The Krellin museum who leads?", "Berta", id="y"))
    model.edit(Edit("Town 21 is in", "Gonf", id="u"))
    assert ids(model) == ["t", "y", "u"]


# A store on the disk


@some_methods
def test_a_stream_that_is_broken_off_resumes_to_the_same_bits(edited, load_edited, tmp_path, method):
    stream = [*EDITS[:3], AGAIN, EDITS[3], replace(EDITS[1], id="b2", target="Carla"), EDITS[4]]
    unbroken = edited(method, stream)
    for cut in (2, 4):
        folder = tmp_path / f"cut-{cut}"
        broken_off(edited(method, []), stream, cut, store=folder)
        resumed = load_edited(folder)
        resumed.edit(stream, store=folder, resume=True)
        same(bits(unbroken), bits(resumed))
        assert ids(resumed) == ids(unbroken)
        resumed.detach()
        assert check.problems(folder) == []
        same(bits(unbroken), bits(load_edited(folder)))


def test_resuming_counts_what_was_declined_and_knows_other_files(edited, load_edited, tmp_path):
    stream = [EDITS[0], AGAIN, *EDITS[1:4]]
    unbroken = edited(edits=stream, on_conflict="keep")
    edited(edits=stream[:2], store=tmp_path / "edits", on_conflict="keep").detach()
    resumed = load_edited(tmp_path / "edits")
    passed = []
    resumed.edit(
        stream, store=tmp_path / "edits", resume=True, on_conflict="keep", on_progress=lambda p: passed.append(p.passed)
    )
    same(bits(unbroken), bits(resumed))
    assert passed == [4, 5]
    resumed.edit([replace(EDITS[0], target="other")], resume=True)
    assert ids(resumed) == ["b", "c", "d", "a#2"]
    nameless = [replace(edit, id=None) for edit in EDITS]
    assert resumed.edit(nameless[1:4], resume=True) == []


def test_attaching(edited, load_edited, tmp_path):
    model = edited(edits=EDITS[:1])
    model.edit(EDITS[1], store=tmp_path / "edits")
    assert [edit.id for edit in load_edited(tmp_path / "edits").edits] == ["a", "b"]
    with pytest.raises(CorrigendaError, match="already holds edits"):
        edited(edits=[]).edit(EDITS[2], store=tmp_path / "edits")
    copy = load_edited(tmp_path / "edits")
    with pytest.warns(UserWarning, match=r"Nothing is written into .*edits, which was only loaded") as told:
        copy.edit(EDITS[2])  # into a copy of its own: the folder is another's
    assert told[0].filename == __file__ and str(told[0].message) in copy.store.notices
    model.edit(EDITS[3])
    assert ids(load_edited(tmp_path / "edits")) == ["a", "b", "d"] and ids(copy) == ["a", "b", "c"]
    reader = load_edited(tmp_path / "edits")
    model.undo("a")
    assert reader.refresh() and ids(reader) == ["b", "d"] and not reader.refresh()
    same(bits(reader), bits(model))


def test_killed_in_mid_stream(edited, load_edited, tmp_path):
    """SIGKILL again and again: what is there is whole, and the stream ends as an unbroken one."""
    chance, context = random.Random(0), multiprocessing.get_context("fork")
    folder = tmp_path / "edits"
    for _ in range(3 * int(os.environ.get("CORRIGENDA_SOAK", "1"))):
        ready = context.Event()
        process = context.Process(target=killed_stream, args=(folder, ready))
        process.start()
        ready.wait(120)
        time.sleep(chance.uniform(0, 1.5))
        process.kill()
        process.join()
        assert not folder.exists() or check.problems(folder) == []
    ready = context.Event()
    killed_stream(folder, ready)
    unbroken = tmp_path / "unbroken"
    killed_stream(unbroken, ready)
    one, two = load_edited(folder), load_edited(unbroken)
    same(bits(one), bits(two))
    assert ids(one) == ids(two) and check.problems(folder) == []


@some_methods
def test_merging_two_stores(edited, load_edited, tmp_path, method):
    edited(method, EDITS[:3], store=tmp_path / "one").detach()
    edited(method, [AGAIN, EDITS[3], EDITS[1]], store=tmp_path / "two").detach()
    shutil.copytree(tmp_path / "one", tmp_path / "both")
    into, other = EditStore.open(tmp_path / "both", write=True), EditStore.open(tmp_path / "two")
    result = merge(into, other)
    into.close(), other.close()
    assert result.superseded[:1] == ["a"] and set(result.added) >= {"a2", "d"}
    both = load_edited(tmp_path / "both")
    assert check.problems(tmp_path / "both") == [] and {"a2", "c", "d"} <= set(ids(both))
    both.undo([edit_id for edit_id in result.added])
    same(bits(both), bits(load_edited(tmp_path / "one")))


# Readers beside a writer


@pytest.mark.parametrize("method", ["associative", "mask router", "memoir", "wise"])
def test_a_pinned_version_stays(edited, method):
    model = edited(method, EDITS[:2])
    asked = [edit.prompt for edit in EDITS]
    before = [(answer.text, answer.edit, answer.provenance.memory) for answer in model.answer(asked, 4)]
    with model.pin():
        model.edit(EDITS[2:])
        model.undo("a")
        model.edit(replace(EDITS[1], id="b2", target="Carla"))
        found = [(answer.text, answer.edit, answer.provenance.memory) for answer in model.answer(asked, 4)]
        assert found == before
        assert ids(model) == ["a", "b"]
    after = model.answer(asked, 4)
    assert ids(model) == ["c", "d", "e", "b2"] and after[0].edit is None
    fresh = edited(method, EDITS[:2])
    fresh.edit(EDITS[2:])
    fresh.undo("a")
    fresh.edit(replace(EDITS[1], id="b2", target="Carla"))
    same(bits(fresh), bits(model))
    assert [answer.text for answer in fresh.answer(asked, 4)] == [answer.text for answer in after]


def test_readers_see_whole_batches(edited):
    model = edited(edits=EDITS[:1])
    prompts = [edit.prompt for edit in EDITS[1:]]
    with LiveEditor(model) as live:
        futures = [live.submit(EDITS[1:3]), live.submit(EDITS[3:5]), live.undo("a")]
        counts = []
        while not futures[-1].done():
            with model.pin() as version:
                routed = [answer.edit is not None for answer in model.answer(prompts, 1)]
                assert sum(routed) == len([edit for edit in version.edits if edit.id != "a"])
                counts.append(sum(routed))
        assert [len(future.result()) for future in futures[:2]] == [2, 2]
        failed = live.undo("nobody")
        with pytest.raises(CorrigendaError, match="nobody"):
            failed.result()
    assert set(counts) <= {0, 2, 4} and ids(model) == ["b", "c", "d", "e"]
    with pytest.raises(CorrigendaError, match="closed"):
        live.submit(EDITS[0])


def test_buffers_keep_their_addresses(edited):
    model = edited(edits=EDITS[:1])
    model.reserve(500, rows=24)

    def addresses():
        memory, router = model.method.memory, model.method.router
        return [t.data_ptr() for t in (*memory.banks.buffers(), router._stored)]

    before = addresses()
    model.edit(EDITS[1:])
    model.undo("c")
    assert addresses() == before


# Where answers come from


def test_provenance(edited):
    model = edited(edits=EDITS)
    evaluator_scores = model.evaluate()
    assert evaluator_scores.routed == 1
    answer, other = model.answer([EDITS[0].rephrases[0], "Why is the sky blue?"], 2)
    source = answer.provenance
    assert (source.edit, source.nearest) == (EDITS[0], EDITS[0]) and source.margin > 0 and source.score == answer.score
    assert other.edit is None and other.provenance.margin < 0
    tokens = torch.tensor([model.prompts.encode(EDITS[1].prompt)])
    _, (found,) = model.generate(tokens, max_new_tokens=2, provenance=True)
    assert found.to_dict()["edit"] == "b" and found.to_dict()["edit_prompt"] == EDITS[1].prompt


def test_scores_are_recorded(edited):
    from corrigenda.editing import Evaluator

    model = edited(edits=[])
    evaluator = Evaluator(model, free=False)
    model.edit(EDITS[:3], score_each=evaluator)
    scores = model.store.history.find("a").scores
    assert set(scores) == {"rel", "gen", "routed", "routed_gen"}
    assert {source["about"] for source in evaluator.provenance} == {0}


@pytest.mark.parametrize("method", ["associative", "memoir", "wise"])
def test_capacity_report(edited, method):
    found = report(edited(method))
    assert found["edits"] == 5 and found["norm"] > 0
    if method == "associative":
        assert found["hit_rate"] == found["hit_rate_rephrased"] == 1 and found["collisions"] == 0
    assert report(edited(method, [])) == {"edits": 0}


@pytest.mark.parametrize("method", ["memoir", "wise"])
def test_a_record_of_bounded_rank_is_smaller_and_still_exact(load_edited, tmp_path, wrap, method):
    models = []
    for rank in (None, 6):
        model = wrap(tiny_model(), tiny_tokenizer(), replace(CONFIGS[method], record_rank=rank))
        model.edit(EDITS[:2])
        models.append(model)
    whole, compact = (model.store.history.find("a").body["tensors"]["bytes"] for model in models)
    assert compact < whole / 3
    models[1].save_pretrained(tmp_path / "edits")
    same(bits(models[1]), bits(load_edited(tmp_path / "edits")))
    weights = [next(iter(bits(model).values())) for model in models]
    assert float((weights[0] - weights[1]).norm() / weights[0].norm()) < 0.5


@pytest.mark.model
@pytest.mark.slow
def test_the_real_model_streams_into_a_store_and_gives_an_edit_back(smollm2, wrap, tmp_path):
    model, tokenizer = smollm2
    asked = [edit.prompt for edit in EDITS[:4]]
    edited = wrap(
        model,
        tokenizer,
        AssociativeConfig(router="tokens", contexts=2, batch_size=2),
        template="Question: {prompt}\\nAnswer:",
    )
    before = edited.generate_text(asked, 8)
    edited.edit(EDITS[:4], store=tmp_path / "edits")
    assert edited.generate_text(asked, 8) == [edit.target for edit in EDITS[:4]]
    live = bits(edited)
    edited.undo("b")
    after = edited.generate_text(asked, 8)
    assert after[1] == before[1] and [after[i] for i in (0, 2, 3)] == [EDITS[i].target for i in (0, 2, 3)]
    edited.redo("b")
    same(live, bits(edited))
    edited.detach()
    assert check.problems(tmp_path / "edits") == []
    again = EditedModel.from_pretrained(model, tmp_path / "edits", tokenizer=tokenizer)
    try:
        same(live, bits(again))
        sizes = [stored.body["tensors"]["bytes"] for stored in again.store.history.edits.values()]
        assert max(sizes) < 100_000
    finally:
        again.detach()
