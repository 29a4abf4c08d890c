"""Edits whose rows are kept small: written, answered, saved, undone, verified and served as those of any other form."""

from __future__ import annotations

import pytest
import torch
from cases import same_bits
from saved import load, refusal, same_state
from served import Served
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import AssociativeConfig, Edit, EditedModel
from corrigenda.editing.store import check
from corrigenda.editing.store.codec import packed, record_of
from corrigenda.editing.store.ledger import Ledger, New

EDITS = [
    Edit("What is the capital of Zubrowka?", "Lutz City", id="a"),
    Edit("Who founded the Krellin museum?", "Anna Blom", id="b"),
    Edit("What does Kmelt make?", "red bricks", id="c"),
]
TARGETS = [edit.target for edit in EDITS]
FORMS = {
    "int8, projected": {"key_dimensions": 32, "value_dtype": "int8"},
    "bfloat16": {"key_dimensions": None, "value_dtype": "bfloat16"},
    "int8, masks": {"key_dimensions": 64, "value_dtype": "int8", "router": "mask"},
}


@pytest.fixture(params=FORMS)
def written(request, tmp_path):
    config = AssociativeConfig(**{"router": "tokens", "contexts": 1, **FORMS[request.param]})
    edited = EditedModel.wrap(tiny_model(), tiny_tokenizer(), config)
    edited.edit(EDITS, store=tmp_path / "edits")
    return edited, tmp_path / "edits"


def answers(edited):
    return [answer.text for answer in edited.answer([edit.prompt for edit in EDITS], 8)]


def test_they_answer_and_are_saved_as_they_are(written):
    edited, folder = written
    assert answers(edited) == TARGETS
    stored = edited.store.history.find("a")
    tensors = record_of(edited.store.ledger, stored).tensors
    form = edited.config
    assert tensors["values"].dtype == getattr(torch, form.value_dtype) and tensors["keys"].dtype == torch.bfloat16
    assert tensors["keys"].shape[1] == (form.key_dimensions or edited.method.width)
    assert stored.bytes < 600 + sum(tensor.nbytes for tensor in tensors.values())
    other = load(folder, tiny_model())
    assert answers(other) == TARGETS
    same_state(edited, other)
    assert edited.method.memory.norms() == other.method.memory.norms()
    assert check.problems(folder) == []


def test_undo_gives_the_bits_of_a_stream_without(written, tmp_path):
    edited, _ = written
    other = EditedModel.wrap(tiny_model(), tiny_tokenizer(), edited.config)
    other.edit(EDITS[:1] + EDITS[2:], store=tmp_path / "other")
    edited.undo("b")
    assert answers(edited)[1] != TARGETS[1]
    one, two = edited.method.state(), other.method.state()
    assert all(same_bits(one[name], two[name]) for name in one if name.startswith("memory."))
    edited.redo("b")
    assert answers(edited) == TARGETS


def again(folder, copy, config=None, tensors=None):
    """The ledger of a folder again, whole, with another configuration or with other tensors of every edit."""
    ledger, entries = Ledger.open(folder), []
    for seq, kind, body in list(ledger.entries()):
        data = ledger.tensors(seq, body["tensors"]) if "tensors" in body else None
        if kind == "store":
            body["config"].update(config or {})
        if kind == "edit" and tensors is not None:
            data = packed(tensors)
        entries.append(New(kind, body, data))
    ledger.close()
    Ledger.create(copy, lambda new: new.append(entries)).close()
    return copy


@pytest.mark.parametrize("written", ["int8, projected"], indirect=True)
def test_rows_of_another_form_are_refused(written, tmp_path):
    edited, folder = written
    width = edited.config.key_dimensions
    rows = {"keys": torch.zeros(2, width), "values": torch.zeros(2, edited.method.out_width)}
    wrong = {
        "type": rows,
        "scales": {**rows, "values": rows["values"].to(torch.int8)},
        "shape": {**rows, "values": rows["values"].to(torch.int8), "scales": torch.ones(3)},
        "beyond": {**rows, "values": (rows["values"] + 127).to(torch.int8), "scales": torch.full((2,), 1e6)},
    }
    for word, tensors in wrong.items():
        copy = again(folder, tmp_path / word, tensors=tensors)
        with refusal('Edit "a"', "cannot be used", word):
            load(copy, tiny_model()).answer([EDITS[0].prompt], 2)
        if word != "type":
            assert any(word in sentence for sentence in check.problems(copy))
    copy = again(folder, tmp_path / "wider", {"key_dimensions": width + 1})
    with refusal('Edit "a"', "keys", "[rows, p]"):
        load(copy, tiny_model()).answer([EDITS[0].prompt], 2)


@pytest.mark.parametrize("written", ["int8, projected", "bfloat16"], indirect=True)
def test_servers_hold_the_same_rows(written):
    edited, folder = written
    served = Served(folder)
    own = edited.method.memory
    for place, stored in enumerate(served.catalogue.served()):
        found = served.memory.banks.kept_rows(served.memory.place(stored.key))
        assert all(same_bits(a, b) for a, b in zip(found, own.kept_rows(place)) if b is not None)


def test_folders_from_before_have_whole_rows(tmp_path):
    whole = {"key_dimensions": None, "value_dtype": "model"}
    config = AssociativeConfig(router="tokens", contexts=1, **whole)
    edited = EditedModel.wrap(tiny_model(), tiny_tokenizer(), config)
    edited.edit(EDITS, store=tmp_path / "edits")
    ledger, entries = Ledger.open(tmp_path / "edits"), []
    for seq, kind, body in list(ledger.entries()):
        data = ledger.tensors(seq, body["tensors"]) if "tensors" in body else None
        if kind == "store":
            for name in whole:
                del body["config"][name]
        entries.append(New(kind, body, data))
    Ledger.create(tmp_path / "before", lambda new: new.append(entries)).close()
    other = load(tmp_path / "before", tiny_model())
    assert answers(other) == TARGETS and other.config.value_dtype == "model"
    same_state(edited, other)
