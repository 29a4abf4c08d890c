"""What a server answers by, whatever its stack: stores, tenants, versions, and what it is asked wrongly."""

from __future__ import annotations

import json
import shutil
import sys
from datetime import datetime
from types import SimpleNamespace

import pytest
import torch
from served import OF_ACME, SHARED, TEMPLATE, Served, store
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import CorrigendaError, Edit, EditedModel, MemoirConfig
from corrigenda.editing.routers.tokens import TokenRouter
from corrigenda.editing.store.codec import fingerprint_text
from corrigenda.editing.store.ledger import Ledger, New
from corrigenda.editing.store.store import EditStore
from corrigenda.serving import Catalogue, ServingError, ServingSettings

pytestmark = pytest.mark.usefixtures("few_background_prompts")

NULL = "embedded null byte" if sys.version_info < (3, 13) else "lstat: embedded null character in path"
"""What Python says of one in a path."""


def applied(catalogue, prompt, tenant=None):
    found = catalogue.admit(catalogue.prompts.encode(catalogue.prompts.wrap(prompt)), tenant)
    return found.edit and found.edit.target


def test_a_tenant_sees_its_own_and_the_shared_edits(served_settings):
    catalogue = Catalogue(tiny_tokenizer(), served_settings)
    for tenant, capital, leader in ((None, "Lutz City", None), ("acme", "Port Adlen", "Ines Okafor")):
        assert applied(catalogue, "Zubrowka has which capital?", tenant) == capital
        assert applied(catalogue, "Who leads Vantrello Foods?", tenant) == leader
        assert applied(catalogue, "Who founded the Krellin museum?", tenant) == "Anna Blom"
    assert applied(catalogue, "Zubrowka has which capital?", "none") == "Lutz City"
    assert catalogue.tenants() == ["acme", "none"]
    with pytest.raises(ServingError, match='no tenant "other"'):
        applied(catalogue, "Who?", "other")


def test_a_change_that_fails_changes_nothing(served_settings, monkeypatch, tmp_path):
    catalogue = Catalogue(tiny_tokenizer(), served_settings)
    more = store(tmp_path / "more", OF_ACME[1:])
    asked = ("Zubrowka has which capital?", "Who leads Vantrello Foods?")
    before = [applied(catalogue, prompt, tenant) for prompt in asked for tenant in (None, "acme")]
    change = catalogue.read([(None, more)])
    add, calls = TokenRouter.add_fingerprints, []

    def once_too_often(router, fingerprints):
        calls.append(len(fingerprints))
        if len(calls) == 2:
            raise MemoryError
        add(router, fingerprints)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(TokenRouter, "add_fingerprints", once_too_often)
        catalogue.publish(change)
    assert [applied(catalogue, prompt, tenant) for prompt in asked for tenant in (None, "acme")] == before
    assert catalogue.version == 1 and (None, more) not in catalogue.folders()
    assert catalogue.publish(change) == 2
    assert applied(catalogue, "Who leads Vantrello Foods?") == "Ines Okafor"
    assert [applied(catalogue, "Zubrowka has which capital?", tenant) for tenant in (None, "acme")] == before[:2]


def test_a_store_whose_fingerprints_are_not_the_routers_is_refused(served_settings, tmp_path):
    catalogue = Catalogue(tiny_tokenizer(), served_settings)
    folder = store(tmp_path / "odd", OF_ACME[1:])
    old = Ledger.open(folder)
    entries = []
    for entry in old.entries():
        body = dict(entry.body)
        tensors = body.pop("tensors", None)
        if entry.kind == "edit":
            body["fingerprint"] = fingerprint_text(torch.tensor([7, 10**6], dtype=torch.int32))
        entries.append(New(entry.kind, body, old.tensors(entry.seq, tensors) if tensors else None))
    old.close()
    Ledger.create(tmp_path / "odd2", lambda ledger: ledger.append(entries)).close()
    with pytest.raises(ServingError, match=r'fingerprint of edit "e" in .*odd2 is not one'):
        catalogue.read([(None, tmp_path / "odd2")])


def test_edits_of_one_store_are_all_seen_and_another_stores_stand_for_theirs(tmp_path):
    """Two questions of the same tokens in another order have one fingerprint."""
    first = Edit("Did Ada meet Bob in Oslo or Rome?", "Oslo", id="ab")
    second = Edit("Did Bob meet Ada in Oslo or Rome?", "Rome", id="ba")
    shared = store(tmp_path / "shared", [first, SHARED[1], second])
    own = store(tmp_path / "own", [Edit(first.prompt, "Bonn", id="own")])
    settings = {"edits": shared, "tenants": {"acme": own, "copy": tmp_path / "copy"}}
    shutil.copytree(shared, tmp_path / "copy")
    catalogue = Catalogue(tiny_tokenizer(), ServingSettings.parse(settings))
    assert catalogue.served()[0].fingerprint == catalogue.served()[-1].fingerprint
    reference = EditedModel.from_pretrained(tiny_model(), shared, tokenizer=tiny_tokenizer())
    assert [edit.id for edit in catalogue.served()] == [edit.id for edit in reference.edits] == ["ab", "b", "ba"]
    for asked in (first.prompt, second.prompt, SHARED[1].prompt):
        found = reference.answer([asked], 1)[0].edit
        assert applied(catalogue, asked) == applied(catalogue, asked, "copy") == (found and found.target)
    assert [edit.id for edit in catalogue.served("acme")] == ["b", "own"]
    assert [(edit.id, edit.tenant) for edit in catalogue.served("copy")] == [(i, "copy") for i in ("ab", "b", "ba")]


def test_an_edit_that_is_redone_goes_back_to_its_place(tmp_path):
    """Of two that a prompt fits alike the first one answers: a running server must not differ from one that starts."""
    first = Edit("Did Ada meet Bob in Oslo or Rome?", "Oslo", id="ab")
    second = Edit("Did Bob meet Ada in Oslo or Rome?", "Rome", id="ba")
    folder = store(tmp_path / "shared", [SHARED[1], first, second])
    own = store(tmp_path / "own", OF_ACME[1:])
    settings = ServingSettings.parse({"edits": folder, "tenants": {"acme": own}})
    catalogue = Catalogue(tiny_tokenizer(), settings)
    state = {tenant: seen.router.state() for tenant, seen in catalogue._now.items()}
    assert applied(catalogue, second.prompt) == "Oslo"
    catalogue.publish(catalogue.undo("ab", None))
    assert applied(catalogue, second.prompt) == "Rome"
    writing = EditStore.open(folder, write=True)
    writing.redo(writing.selected(["ab"]))
    writing.close()
    change = catalogue.read([(None, folder)])
    assert [edit.id for edit in change.added] == ["ab"]
    catalogue.publish(change)
    restarted = Catalogue(tiny_tokenizer(), settings)
    for tenant, ids in ((None, ["b", "ab", "ba"]), ("acme", ["b", "ab", "ba", "e"])):
        for each in (catalogue, restarted):
            assert [edit.id for edit in each.served(tenant)] == ids
            assert applied(each, second.prompt, tenant) == "Oslo"
            found = each._now[tenant].router.state()
            assert all(torch.equal(tensor, found[name]) for name, tensor in state[tenant].items())


def test_no_older_edit_answers_the_question_of_an_undone_one(tmp_path):
    asked, other = "What is the capital of Zubrowka?", "What is the anthem of Zubrowka?"
    newer, older = (Edit(other, f"The {name} road", id=name) for name in ("newer", "older"))
    folder = store(tmp_path / "own", [older, Edit(asked, "Lutz City", id="taken")])
    store(tmp_path / "early", [older])
    settings = {"edits": folder, "tenants": {"early": tmp_path / "early"}, "root": tmp_path}
    catalogue = Catalogue(tiny_tokenizer(), ServingSettings.parse(settings))
    assert applied(catalogue, asked) == "Lutz City"
    catalogue.publish(catalogue.undo("taken", None))
    restarted = Catalogue(tiny_tokenizer(), ServingSettings.parse(settings))
    reference = EditedModel.from_pretrained(tiny_model(), folder, tokenizer=tiny_tokenizer())
    for each in (catalogue, restarted):
        for tenant in (None, "early"):
            assert applied(each, asked, tenant) is None and applied(each, other, tenant) == "The older road"
            assert each.why(asked, tenant)["withdrawn"] == "taken" and each.why(other, tenant)["withdrawn"] is None
        margin = each.admit(each.prompts.encode(each.prompts.wrap(asked))).margin
        assert margin == pytest.approx(reference.answer([asked], 1)[0].provenance.margin) and margin < 0
    store(tmp_path / "late", [newer])
    catalogue.publish(catalogue.read([("early", tmp_path / "late")]))
    assert applied(catalogue, asked) is None and applied(catalogue, asked, "early") == "The newer road"
    writing = EditStore.open(folder, write=True)
    writing.redo(writing.selected(["taken"]))
    writing.close()
    catalogue.publish(catalogue.read([(None, folder)]))
    assert applied(catalogue, asked) == "Lutz City"


def test_what_was_undone_is_told_from_what_came_since_while_the_clock_stands_still(tmp_path, monkeypatch):
    asked, other = "What is the capital of Zubrowka?", "What is the anthem of Zubrowka?"
    clock = SimpleNamespace(now=lambda zone: datetime(2026, 1, 1, tzinfo=zone))
    monkeypatch.setattr("corrigenda.editing.store.history.datetime", clock)
    folder = store(tmp_path / "own", [Edit(other, "The older road", id="older"), Edit(asked, "Lutz City", id="taken")])
    catalogue = Catalogue(tiny_tokenizer(), ServingSettings.parse({"edits": folder}))
    catalogue.publish(catalogue.undo("taken", None))
    model = EditedModel.from_pretrained(tiny_model(), folder, tokenizer=tiny_tokenizer())
    assert model.answer([asked], 1)[0].provenance.withdrawn == catalogue.why(asked)["withdrawn"] == "taken"
    assert applied(catalogue, asked) is None
    model.edit(Edit(other, "The newer road", id="newer"))
    model.save_pretrained(tmp_path / "since")
    catalogue = Catalogue(tiny_tokenizer(), ServingSettings.parse(tmp_path / "since"))
    assert model.answer([asked], 1)[0].edit.target == applied(catalogue, asked) == "The newer road"


def test_a_version_counts_only_when_published(served_settings):
    served = Served(served_settings)
    asked = served.ids("Who leads Vantrello Foods?")
    change = served.catalogue.read([(None, served_settings.root / "acme")])
    assert change.added == [] and change.needed == {}  # another tenant has them already
    assert served.catalogue.admit(asked).edit is None
    served.take(change)
    assert served.catalogue.admit(asked).edit.target == "Ines Okafor"


@pytest.mark.parametrize(
    "given, words",
    [
        ({"edits": []}, "must name a folder"),
        ({}, "must name a folder"),
        ({"edits": "x", "capacty": 3}, 'no setting "capacty"'),
        ({"edits": "x", "capacity": 0}, '"capacity" must be a whole number'),
        ({"edits": "x", "tenants": ["a"]}, '"tenants" must be an object'),
        ({"edits": "x", "read_only": 1}, '"read_only" must be true or false'),
        (3, "must be a folder of edits"),
        ({"edits": "x", "root": 5}, '"root" must hold folders as text, not 5'),
        ({"edits": "x", "root": "a\0b"}, rf"No folder can be named 'a\\x00b': {NULL}"),
        ({"edits": "~nosuchuser/x"}, "No folder can be named '~nosuchuser/x'"),
        ({"edits": "x", "tenants": {"t": "~nosuchuser"}}, "No folder can be named '~nosuchuser'"),
    ],
)
def test_settings_that_make_no_sense(given, words):
    with pytest.raises(CorrigendaError, match=words):
        ServingSettings.parse(given)


def test_what_cannot_be_served(folders, served_settings, tmp_path):
    with pytest.raises(ServingError, match="There is no folder"):
        Catalogue(tiny_tokenizer(), ServingSettings.parse(tmp_path / "none"))
    memoir = EditedModel.wrap(tiny_model(), tiny_tokenizer(), MemoirConfig(steps=1, contexts=1))
    memoir.save_pretrained(tmp_path / "memoir")
    with pytest.raises(ServingError, match=r'memoir.*scope="causal"'):
        Catalogue(tiny_tokenizer(), ServingSettings.parse(tmp_path / "memoir"))
    catalogue = Catalogue(tiny_tokenizer(), served_settings)
    cases = {
        "its weights differ": {"model": tiny_model(seed=1)},
        "have layer=1": {"layer": 1},
        "have beta=5.0": {"beta": 5.0},
    }
    for number, (words, options) in enumerate(cases.items()):
        other = store(tmp_path / str(number), SHARED[:1], **options)
        with pytest.raises(ServingError, match=words) as error:
            catalogue.read([(None, other)])
        assert error.value.status == 422
    assert catalogue.version == 1


def test_folders_that_a_request_may_name(served_settings, tmp_path):
    catalogue = Catalogue(tiny_tokenizer(), served_settings)
    assert catalogue.allowed("acme", "acme") == served_settings.root / "acme"
    assert catalogue.allowed(str(served_settings.root / "shared")) == served_settings.root / "shared"
    (served_settings.root / "way-out").unlink(missing_ok=True)
    (served_settings.root / "way-out").symlink_to(tmp_path)
    long = "x" * 5000
    cases = {
        "acme": 403,
        "../x": 403,
        "/etc": 403,
        "missing": 404,
        "way-out": 403,
        long: 404,
        f"/{long}": 403,
        "\ud800": 400,
    }
    for folder, status in cases.items():
        with pytest.raises(ServingError) as error:
            catalogue.allowed(folder)
        assert error.value.status == status
    (served_settings.root / "way-out").unlink()
    closed = Catalogue(tiny_tokenizer(), ServingSettings.parse(served_settings.edits[0]))
    assert closed.allowed(str(served_settings.edits[0])) == served_settings.edits[0]
    with pytest.raises(ServingError, match="loads no further folders"):
        closed.allowed("acme")
    with pytest.raises(ServingError, match="No folder can be named '~nosuchuser/x'") as error:
        closed.allowed("~nosuchuser/x")
    assert error.value.status == 400


def test_undo_of_what_is_not_there(served_settings):
    catalogue = Catalogue(tiny_tokenizer(), served_settings)
    for name, tenant, status in (("zzz", None, 404), ("e", None, 404), ("b", "acme", 404)):
        with pytest.raises(ServingError) as error:
            catalogue.undo(name, tenant)
        assert error.value.status == status
    writer = EditStore.open(served_settings.edits[0], write=True)
    try:
        with pytest.raises(ServingError, match="Another process is writing") as error:
            catalogue.undo("a", None)
        assert error.value.status == 409
    finally:
        writer.close()
    fixed = Catalogue(tiny_tokenizer(), ServingSettings.parse({"edits": served_settings.edits[0], "read_only": True}))
    with pytest.raises(ServingError, match="corrigenda undo"):
        fixed.undo("a", None)


def test_why_names_the_nearest(served_settings):
    catalogue = Catalogue(tiny_tokenizer(), served_settings)
    answer = catalogue.why("Zubrowka has which capital?", "acme")
    assert answer["edit"] == "a" and answer["nearest"][0]["target"] == "Port Adlen"
    assert catalogue.why("What time is it?")["edit"] is None
    assert json.dumps(catalogue.listing("acme"))


def test_template_and_edit_are_those_of_the_store(served_settings):
    catalogue = Catalogue(tiny_tokenizer(), served_settings)
    assert catalogue.prompts.template.text == TEMPLATE.replace("\\n", "\n")
    assert catalogue.served()[0].stored.edit == Edit(SHARED[0].prompt, SHARED[0].target, id="a")


def test_a_store_that_is_read_anew_is_read_from_where_it_was(tmp_path):
    """What was written since is folded in; a folder that came in its place is another store."""
    folder = store(tmp_path / "own", SHARED)
    served = Served({"edits": folder})
    catalogue = served.catalogue
    before = catalogue.served()
    writing = EditStore.open(folder, write=True)
    writing.undo(writing.selected(["b"]))
    writing.close()
    change = catalogue.read([(None, folder)])
    assert [edit.id for edit in change.removed] == ["b"] and change.added == []
    (kept,) = change.stores.values()
    assert all(edit is one for edit, one in zip(kept, (before[0], before[2])))
    served.take(change)
    shutil.rmtree(folder)
    store(folder, OF_ACME)
    change = catalogue.read([(None, folder)])
    assert [edit.target for edit in change.added] == ["Port Adlen", "Ines Okafor"]
    served.take(change)
    assert catalogue.admit(served.ids("Who leads Vantrello Foods?")).edit.target == "Ines Okafor"
    assert len(served.memory) == 2


def test_a_store_of_an_earlier_version_is_to_be_migrated(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ServingError, match="corrigenda migrate"):
        Catalogue(tiny_tokenizer(), ServingSettings.parse(tmp_path))
