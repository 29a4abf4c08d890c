"""Values that are no numbers, or too large for one: refused wherever an edit comes in, and stopped at the layer."""

from __future__ import annotations

import pytest
import torch
from batched import NEW, Running, batch, tokens
from served import SHARED, TEMPLATE, filled, formed, store
from tiny import tiny_model, tiny_tokenizer
from typer.testing import CliRunner

from corrigenda.editing import AssociativeConfig, CorrigendaError, EditedModel, MemoirConfig
from corrigenda.editing.cli.app import app as program
from corrigenda.editing.methods.record import LARGEST, check_values
from corrigenda.editing.store.check import problems
from corrigenda.editing.store.codec import packed, unpacked
from corrigenda.editing.store.exchange import merge
from corrigenda.editing.store.ledger import New
from corrigenda.editing.store.repair import repair
from corrigenda.editing.store.sense import check_edit
from corrigenda.editing.store.store import EditStore
from corrigenda.serving import ServingError

pytestmark = pytest.mark.usefixtures("few_background_prompts")

POISON = {"nan": torch.nan, "inf": torch.inf, "3e38": 3e38, "-40000": -40_000.0}


@pytest.fixture(scope="module")
def healthy(few_background_prompts, tmp_path_factory):
    return store(tmp_path_factory.mktemp("stores") / "healthy", SHARED)


@pytest.fixture(scope="module")
def whole(few_background_prompts, tmp_path_factory):
    """The same with values of the model's type."""
    folder = tmp_path_factory.mktemp("stores") / "whole"
    return store(folder, SHARED, key_dimensions=None, value_dtype="model")


def poisoned(healthy, folder, value, name="scales"):
    """A folder whose first edit has one bad value; the chain of checksums is that of what it holds."""
    good = EditStore.open(healthy)
    bad = EditStore.create(folder, *header_of(good))
    entries = []
    for entry in good.ledger.entries():
        if entry.kind == "store":
            continue
        tensors = unpacked(good.ledger, entry.seq, entry.body["tensors"])
        if entry.kind == "edit" and entry.body["id"] == SHARED[0].id:
            tensors[name].view(-1)[1] = value
        entries.append(New(entry.kind, {k: v for k, v in entry.body.items() if k != "tensors"}, packed(tensors)))
    bad.append(entries)
    good.close()
    bad.close()
    return folder


def header_of(store):
    body = {name: value for name, value in store.header.items() if name not in ("id", "tensors", "time", "author")}
    return body, store.ledger.tensors(1, store.header["tensors"])


@pytest.mark.parametrize("value", POISON)
@pytest.mark.parametrize("name", ["keys", "scales", "values"])
def test_a_folder_with_poison_is_refused_by_whatever_would_answer_from_it(healthy, whole, tmp_path, value, name):
    healthy = whole if name == "values" else healthy
    bad = poisoned(healthy, tmp_path / "bad", POISON[value], name)
    found = problems(bad)
    assert len(found) == 1 and "not finite" in found[0]
    edited = EditedModel.from_pretrained(tiny_model(), bad, tokenizer=tiny_tokenizer())
    with pytest.raises(CorrigendaError, match="not finite"):
        edited.answer([SHARED[0].prompt], 2)
    edited.detach()
    into, other = EditStore.open(healthy).copy(tmp_path / "into"), EditStore.open(bad)
    into.undo(into.selected(["a"]))
    into.append([New("dropped", {"edits": [into.history.find("a").seq], **into.stamp()})])
    fresh = EditStore.create(tmp_path / "fresh", *header_of(into))
    before = fresh.ledger.count
    with pytest.raises(CorrigendaError, match="not finite"):
        merge(fresh, other)
    assert fresh.ledger.count == before and not fresh.history.edits
    for one in (into, other, fresh):
        one.close()


@pytest.mark.parametrize("value", POISON)
def test_a_server_refuses_poison_and_goes_on(healthy, serve, tmp_path, value, alone):
    bad = poisoned(healthy, tmp_path / "bad", POISON[value])
    served = serve({"edits": healthy, "root": tmp_path})
    rows = served.encode([edit.prompt for edit in SHARED])
    expected = tokens(batch(served, rows))
    with pytest.raises(ServingError, match=r'Edit "a" of .* cannot be used: .*not finite') as refused:
        served.load(bad)
    assert refused.value.status == 422 and served.version == 1
    assert tokens(batch(served, rows)) == expected
    with pytest.raises(CorrigendaError, match="not finite"):
        serve(bad)


@pytest.mark.parametrize("value", ["nan", "3e38"])
def test_a_poisoned_edit_can_be_seen_and_taken_out(healthy, tmp_path, value):
    bad = poisoned(healthy, tmp_path / "bad", POISON[value])
    for command in (["log", str(bad)], ["show", str(bad), "a"], ["undo", str(bad), "a"]):
        result = CliRunner().invoke(program, command)
        assert result.exit_code == 0, result.output
    edited = EditedModel.from_pretrained(tiny_model(), bad, tokenizer=tiny_tokenizer())
    assert [edit.id for edit in edited.edits] == ["b", "c"]
    edited.detach()
    assert CliRunner().invoke(program, ["compact", str(bad), "--forget-undone"]).exit_code == 0
    assert problems(bad) == []


def test_repair_leaves_poison_out(healthy, tmp_path):
    bad = poisoned(healthy, tmp_path / "bad", torch.nan)
    assert any('"a" is lost' in line for line in repair(bad)) and problems(bad) == []


@pytest.mark.parametrize("field", ["ground", "store"])
def test_ground_and_sample_are_finite_too(healthy, tmp_path, field):
    good = EditStore.open(healthy)
    body, sample = header_of(good)
    ground = unpacked(good.ledger, good.history.ground.seq, good.history.ground.body["tensors"])
    if field == "store":
        sample = packed({"base.weight_sample": torch.full((12,), torch.nan)})
    else:
        ground["memory.background"] = ground["memory.background"] * torch.nan
    bad = EditStore.create(tmp_path / "bad", body, sample)
    bad.append([New("ground", bad.stamp(), packed(ground))])
    bad.close()
    assert any("not finite" in sentence for sentence in problems(tmp_path / "bad"))
    good.close()


@pytest.mark.parametrize(
    "config",
    [
        AssociativeConfig(router="tokens", contexts=2, steps=4, learning_rate=1e30),
        MemoirConfig(contexts=2, steps=2, top_k=32, learning_rate=1e30),
    ],
    ids=["associative", "memoir"],
)
def test_what_an_edit_is_solved_to_is_checked_before_it_is_written(wrap, config):
    edited = wrap(tiny_model(), tiny_tokenizer(), config, template=TEMPLATE)
    before = edited.generate_text([SHARED[0].prompt], 4)
    with pytest.raises(CorrigendaError, match=r'Edit "a" was not written: its tensor ".*" has values'):
        edited.edit(SHARED[:1])
    assert not edited.edits and edited.generate_text([SHARED[0].prompt], 4) == before


def test_what_counts_as_a_value():
    check_values({"a": torch.tensor([LARGEST, -LARGEST, 0.0]), "b": torch.zeros(0, 3)})
    for value in (LARGEST + 1, -LARGEST - 1, torch.nan, -torch.inf):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            bad = torch.tensor([0.0, value], dtype=torch.float32).to(dtype)
            if bad[1].abs() == LARGEST:  # bfloat16 has nothing between
                continue
            with pytest.raises(CorrigendaError, match='tensor "a"'):
                check_values({"a": bad})


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 10**400])
def test_numbers_of_a_record_are_finite(wrap, tmp_path, number):
    edited = wrap(tiny_model(), tiny_tokenizer(), MemoirConfig(contexts=2, steps=2, top_k=32), template=TEMPLATE)
    edited.edit(SHARED[:1], store=tmp_path / "edits")
    (stored,) = edited.store.history.edits.values()
    check_edit(stored.seq, stored.body)
    stored.body["numbers"]["alpha"] = number
    with pytest.raises(ValueError, match="its numbers are not numbers"):  # said of the ledger by whoever reads it
        check_edit(stored.seq, stored.body)


# The layer: what got in by force


def test_a_stream_beside_others_fails_where_its_edit_is_poisoned(healthy, serve, alone):
    served = serve(healthy)
    (row,) = served.encode([SHARED[0].prompt])
    running = Running(served)
    key = served.catalogue.admit(row).key
    rows = formed(served.memory, key)
    served.memory.keep(served.catalogue.keys() - {key})
    served.memory.put({key: filled(rows, torch.nan)})
    with running.manager.pause():
        running.manager.add_request(row, max_new_tokens=NEW, streaming=True)
    output = running.manager.get_result(timeout=60)
    assert output.is_finished() and "too large" in output.error and not output.generated_tokens
    (other,) = served.encode([SHARED[1].prompt])
    assert running.ask(other) == alone([other])[0] and running.manager.output_router.output_queue.empty()


def at_once(running, rows):
    """The results of prompts that come between two passes, so that every pass holds the same ones; the first's is of
    one token, so that it is in the first pass alone, whether it fails there or not."""
    with running.manager.pause():
        names = [running.manager.add_request(row, max_new_tokens=NEW if i else 1) for i, row in enumerate(rows)]
    found = {}
    while len(found) < len(names):
        output = running.manager.get_result(timeout=60)
        found[output.request_id] = output
    return [found[name] for name in names]


def question(number):
    return f"Which of the {number} towns on the river has the oldest bridge, and who built it?"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e38])
def test_forty_requests_beside_poison_have_the_bits_that_they_have_without(healthy, serve, value, dtype):
    """All in one batch: attention multiplied what the poisoned row left behind by zero, and zero times NaN is NaN."""
    served = serve(healthy, tiny_model().to(dtype))
    poisoned_row, *others = served.encode(
        [SHARED[0].prompt, *(edit.prompt for edit in SHARED[1:]), *map(question, range(38))]
    )
    running = Running(served, max_batch_tokens=4096, num_blocks=1024)
    key = served.catalogue.admit(poisoned_row).key
    rows = formed(served.memory, key)
    served.memory.keep(served.catalogue.keys() - {key})  # the control: the same passes, with the base model's answer
    expected = at_once(running, [poisoned_row, *others])
    served.memory.put({key: filled(rows, value)})
    assert served.catalogue.admit(poisoned_row).key == key and served.memory.place(key) >= 0
    failed, *found = at_once(running, [poisoned_row, *others])
    assert [one.generated_tokens for one in found] == [one.generated_tokens for one in expected[1:]]
    assert len(found) == 40 and not any(one.error for one in found)
    assert "no numbers, or too large" in failed.error and not failed.generated_tokens
    assert not at_once(running, others[:3])[0].error and running.manager.output_router.output_queue.empty()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_layer_leaves_a_poisoned_row_as_it_was(dtype):
    from corrigenda.editing.model.layer import bounded_

    before = torch.randn(6, 8).to(dtype)
    before[5] = torch.inf
    rows = before.clone()
    rows[0] += 1
    rows[1, 3] = torch.nan
    rows[2, 0] = -torch.inf
    rows[3, 7] = 60_000.0
    rows[4] -= LARGEST / 2
    expected = rows.clone()
    expected[1:4] = before[1:4]
    kept = bounded_(rows, before)
    assert kept.tolist() == [True, False, False, False, True, False] and torch.equal(rows, expected)


def test_an_answer_without_its_edits_values_bears_no_name(wrap):
    edited = wrap(
        tiny_model(), tiny_tokenizer(), AssociativeConfig(router="tokens", contexts=1, steps=3), template=TEMPLATE
    )
    edited.edit(SHARED[:2], keep_unsolved=True)
    asked = [edit.prompt for edit in SHARED[:2]]
    base = edited.answer(["Tell me about the weather"])
    assert [answer.edit.id for answer in edited.answer(asked)] == [edit.id for edit in SHARED[:2]]
    banks = edited.method.memory.banks
    (slot,) = edited.method.memory.locate(torch.tensor([0])).tolist()
    banks._scales[int(banks._pages[slot, 0])] = torch.nan
    with pytest.warns(UserWarning, match="answers are the base model's"):
        poisoned, whole = edited.answer(asked)
    assert poisoned.edit is None and not poisoned.provenance.applied and whole.edit.id == SHARED[1].id
    assert edited.answer(["Tell me about the weather"])[0].text == base[0].text
