"""The parts of a server that no stack knows of: catalogue, memory and slots."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import same_bits
from served import OF_ACME, SHARED, TEMPLATE, Served, store
from tiny import tiny_model, tiny_tokenizer
from transformers import DynamicCache

from corrigenda.editing import CorrigendaError, Edit, EditedModel, MemoirConfig
from corrigenda.editing.context import RoutingContext
from corrigenda.editing.store.codec import fingerprint_text
from corrigenda.editing.store.ledger import Ledger, New
from corrigenda.editing.store.store import EditStore
from corrigenda.editing.token_router import TokenRouter
from corrigenda.serving import Catalogue, ServingError, ServingSettings, Slots

pytestmark = pytest.mark.usefixtures("few_background_prompts")


@pytest.fixture
def settings(folders):
    return ServingSettings.parse(
        {"edits": folders / "shared", "tenants": {"acme": folders / "acme", "none": []}, "root": folders}
    )


def applied(catalogue, prompt, tenant=None):
    found = catalogue.admit(catalogue.prompts.encode(catalogue.prompts.wrap(prompt)), tenant)
    return found.edit and found.edit.target


def test_a_tenant_sees_its_own_and_the_shared_edits(settings):
    catalogue = Catalogue(tiny_tokenizer(), settings)
    for tenant, capital, leader in ((None, "Lutz City", None), ("acme", "Port Adlen", "Ines Okafor")):
        assert applied(catalogue, "Zubrowka has which capital?", tenant) == capital
        assert applied(catalogue, "Who leads Vantrello Foods?", tenant) == leader
        assert applied(catalogue, "Who founded the Krellin museum?", tenant) == "Anna Blom"
    assert applied(catalogue, "Zubrowka has which capital?", "none") == "Lutz City"
    assert catalogue.tenants() == ["acme", "none"]
    with pytest.raises(ServingError, match='no tenant "other"'):
        applied(catalogue, "Who?", "other")


def test_a_change_that_fails_changes_nothing(settings, monkeypatch, tmp_path):
    catalogue = Catalogue(tiny_tokenizer(), settings)
    more = store(tmp_path / "more", OF_ACME[1:])
    asked = ("Zubrowka has which capital?", "Who leads Vantrello Foods?")
    before = [applied(catalogue, prompt, tenant) for prompt in asked for tenant in (None, "acme")]
    change = catalogue.read([(None, more)])
    add_rows, calls = TokenRouter.add_rows, []

    def once_too_often(router, rows):
        calls.append(len(rows))
        if len(calls) == 2:
            raise MemoryError
        add_rows(router, rows)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(TokenRouter, "add_rows", once_too_often)
        catalogue.publish(change)
    assert [applied(catalogue, prompt, tenant) for prompt in asked for tenant in (None, "acme")] == before
    assert catalogue.version == 1 and (None, more) not in catalogue.folders()
    assert catalogue.publish(change) == 2
    assert applied(catalogue, "Who leads Vantrello Foods?") == "Ines Okafor"
    assert [applied(catalogue, "Zubrowka has which capital?", tenant) for tenant in (None, "acme")] == before[:2]


def test_a_store_whose_fingerprints_are_not_the_routers_is_refused(settings, tmp_path):
    catalogue = Catalogue(tiny_tokenizer(), settings)
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


def chunked(served, request, ids, sizes, edit):
    """Logits of a request whose tokens come in passes of these sizes, other requests' tokens not among them."""
    served.slots.start(request, len(ids), served.memory.place(edit))
    cache, past, logits = DynamicCache(), 0, []
    for size in sizes:
        served.slots.describe([request], np.array([past]), np.array([size]))
        part = torch.tensor([ids[past : past + size]])
        with torch.no_grad():
            logits.append(served.model(input_ids=part, past_key_values=cache).logits[0])
        past += size
    served.slots.end(request)
    return torch.cat(logits)


def test_chunks_do_not_change_what_an_edit_does(settings):
    served = Served(settings)
    reference = EditedModel.from_pretrained(tiny_model(), settings.edits[0], tokenizer=tiny_tokenizer())
    ids = served.ids("Zubrowka has which capital?")
    admitted = served.catalogue.admit(ids)
    whole = chunked(served, "r", ids, [len(ids)], admitted.key)
    with reference.teacher_forcing(torch.tensor([ids]), [len(ids)], [len(ids)]), torch.no_grad():
        expected = reference.model(input_ids=torch.tensor([ids])).logits[0]
    assert same_bits(whole, expected)
    base = chunked(served, "r", ids, [len(ids)], None)
    assert same_bits(whole[:-1], base[:-1]) and not torch.allclose(whole[-1], base[-1])
    for sizes in ([len(ids) - 1, 1], [3] * (len(ids) // 3) + [len(ids) % 3] * (len(ids) % 3 > 0), [1] * len(ids)):
        assert torch.allclose(chunked(served, "r", ids, sizes, admitted.key), whole, atol=1e-5)


def test_a_packed_pass_tells_whose_tokens_it_holds(settings):
    served = Served(settings)
    slots, context = served.slots, served.context
    slots.start("edited", 4, 1)
    slots.start("plain", 3, -1)
    slots.start("also", 2, 0)
    slots.describe(["plain", "edited", "also"], np.array([0, 2, 2]), np.array([3, 3, 1]))
    assert context.token_routes(7).tolist() == [-1, -1, -1, -1, 1, 1, 0]
    assert context.first[:7].tolist() == [False, False, True, False, True, False, False]
    slots.describe(["also", "edited"], np.array([3, 5]), np.array([1, 1]))
    assert context.token_routes(4).tolist() == [0, 1, -1, -1]
    slots.describe(["plain"], np.array([3]), np.array([1]))
    assert not context.active
    slots.describe(["also", "edited"], np.array([4, 6]), np.array([1, 1]))
    assert context.active and context.token_routes(2).tolist() == [0, 1]
    # A request that is computed anew from its start, generated tokens and all, as after preemption.
    slots.describe(["edited"], np.array([0]), np.array([7]))
    assert context.token_routes(7).tolist() == [-1, -1, -1, 1, 1, 1, 1]
    slots.keep({"plain"})
    assert len(slots) == 1 and "edited" not in slots and slots.places() == set()


def test_a_layer_that_may_be_captured_runs_in_every_pass(settings):
    """What a graph was captured with must be there before the first request, and when none is edited."""
    served = Served(settings)
    context = RoutingContext(torch.device("cpu"))
    slots = Slots(context, 4, 32, captured=True)
    assert context.active and context.token_routes(32).tolist() == [-1] * 32
    slots.start("plain", 2, -1)
    slots.describe(["plain"], np.array([0]), np.array([2]))
    assert context.active and context.token_routes(32).tolist() == [-1] * 32
    addresses = [part.data_ptr() for part in (context.slot, context.gate, context.first, context.route)]
    for name, place in zip("abc", (0, 1, 2)):
        slots.start(name, 3, place)
    slots.describe(["plain", *"abc"], np.array([2, 0, 0, 0]), np.array([1, 3, 3, 3]))
    assert context.token_routes(32).tolist() == [-1, -1, -1, 0, -1, -1, 1, -1, -1, 2] + [-1] * 22
    assert [part.data_ptr() for part in (context.slot, context.gate, context.first, context.route)] == addresses
    assert not served.context.active


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


def test_slots_run_out_in_one_sentence(settings):
    served = Served(settings, requests=2)
    for name in "ab":
        served.slots.start(name, 1, -1)
    with pytest.raises(CorrigendaError, match="More than 2 requests"):
        served.slots.start("c", 1, -1)
    served.slots.end("a")
    served.slots.start("c", 1, -1)


def test_undo_is_a_version_and_rows_stay_while_they_are_read(folders, tmp_path):
    folder = store(tmp_path / "own", SHARED)
    served = Served({"edits": folder})
    catalogue, memory = served.catalogue, served.memory
    before = catalogue.admit(served.ids("What does Kmelt make?"))
    place = memory.place(before.key)
    served.slots.start("pinned", 5, place)
    rows = [part.clone() for part in memory.banks.rows_of(place)]
    served.take(catalogue.undo("c", None, author="me"))
    assert catalogue.version == before.version + 1
    assert catalogue.admit(served.ids("What does Kmelt make?")).edit is None
    assert all(same_bits(a, b) for a, b in zip(rows, memory.banks.rows_of(place)))
    served.slots.end("pinned")
    assert memory.keep(catalogue.keys(), served.slots.places()) == 1
    # Redone by another process and read again, it takes the place that was given back.
    writing = EditStore.open(folder, write=True)
    writing.redo(writing.selected(["c"]))
    writing.close()
    served.take(catalogue.read([(None, folder)]))
    again = catalogue.admit(served.ids("What does Kmelt make?"))
    assert again.key == before.key and memory.place(again.key) == place
    assert all(same_bits(a, b) for a, b in zip(rows, memory.banks.rows_of(place)))


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


def test_a_version_counts_only_when_published(settings):
    served = Served(settings)
    asked = served.ids("Who leads Vantrello Foods?")
    change = served.catalogue.read([(None, settings.root / "acme")])
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
        ({"edits": "x", "root": "a\0b"}, r"No folder can be named 'a\\x00b': embedded null byte"),
        ({"edits": "~nosuchuser/x"}, "No folder can be named '~nosuchuser/x'"),
        ({"edits": "x", "tenants": {"t": "~nosuchuser"}}, "No folder can be named '~nosuchuser'"),
    ],
)
def test_settings_that_make_no_sense(given, words):
    with pytest.raises(CorrigendaError, match=words):
        ServingSettings.parse(given)


def test_what_cannot_be_served(folders, settings, tmp_path):
    with pytest.raises(ServingError, match="There is no folder"):
        Catalogue(tiny_tokenizer(), ServingSettings.parse(tmp_path / "none"))
    memoir = EditedModel.wrap(tiny_model(), tiny_tokenizer(), MemoirConfig(steps=1, contexts=1))
    memoir.save_pretrained(tmp_path / "memoir")
    with pytest.raises(ServingError, match=r'memoir.*scope="causal"'):
        Catalogue(tiny_tokenizer(), ServingSettings.parse(tmp_path / "memoir"))
    catalogue = Catalogue(tiny_tokenizer(), settings)
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


def test_folders_that_a_request_may_name(settings, tmp_path):
    catalogue = Catalogue(tiny_tokenizer(), settings)
    assert catalogue.allowed("acme") == settings.root / "acme"
    assert catalogue.allowed(str(settings.root / "shared")) == settings.root / "shared"
    (settings.root / "way-out").unlink(missing_ok=True)
    (settings.root / "way-out").symlink_to(tmp_path)
    long = "x" * 5000
    cases = {"../x": 403, "/etc": 403, "missing": 404, "way-out": 403, long: 404, f"/{long}": 403, "\ud800": 400}
    for folder, status in cases.items():
        with pytest.raises(ServingError) as error:
            catalogue.allowed(folder)
        assert error.value.status == status
    (settings.root / "way-out").unlink()
    closed = Catalogue(tiny_tokenizer(), ServingSettings.parse(settings.edits[0]))
    assert closed.allowed(str(settings.edits[0])) == settings.edits[0]
    with pytest.raises(ServingError, match="loads no further folders"):
        closed.allowed("acme")
    with pytest.raises(ServingError, match="No folder can be named '~nosuchuser/x'") as error:
        closed.allowed("~nosuchuser/x")
    assert error.value.status == 400


def test_undo_of_what_is_not_there(settings):
    catalogue = Catalogue(tiny_tokenizer(), settings)
    for name, tenant, status in (("zzz", None, 404), ("e", None, 404), ("b", "acme", 404)):
        with pytest.raises(ServingError) as error:
            catalogue.undo(name, tenant)
        assert error.value.status == status
    writer = EditStore.open(settings.edits[0], write=True)
    try:
        with pytest.raises(ServingError, match="Another process is writing") as error:
            catalogue.undo("a", None)
        assert error.value.status == 409
    finally:
        writer.close()
    fixed = Catalogue(tiny_tokenizer(), ServingSettings.parse({"edits": settings.edits[0], "read_only": True}))
    with pytest.raises(ServingError, match="corrigenda undo"):
        fixed.undo("a", None)


def test_rows_that_changed_under_the_server(settings):
    served = Served(settings)
    with pytest.raises(ServingError, match="changed while it was loaded"):
        served.memory.load(settings.edits[0], {"0" * 24: 3})
    assert len(served.memory) == len(SHARED) + len(OF_ACME)


def test_an_edit_that_does_not_fit_the_layer_is_named(settings):
    served = Served(settings)
    (folder, edits), *_ = served.catalogue.start.needed.items()
    fresh = type(served.memory)(served.catalogue.config, served.memory.widths, torch.device("cpu"), torch.float32)
    fresh._take_ground = lambda ledger: None
    fresh.widths = (fresh.widths[0], 63)
    with pytest.raises(ServingError, match=r'^Edit "a" of .*shared.* cannot be used: its tensor "values" has') as error:
        fresh.load(folder, edits)
    assert error.value.status == 422 and len(fresh) == 0


def test_a_fixed_memory_says_when_it_is_full(settings):
    served = Served(settings)
    fresh = type(served.memory)(served.catalogue.config, served.memory.widths, torch.device("cpu"), torch.float32)
    fresh.reserve(64, 8)
    fresh.banks.fixed = True
    address = fresh.banks._keys.data_ptr()
    (folder, edits), *_ = served.catalogue.start.needed.items()
    fresh.load(folder, edits)
    record = fresh.banks.rows_of(0)
    while fresh.banks.has_room([8]):
        fresh.banks.put(*record)
    other = served.catalogue.start.needed[settings.root / "acme"]
    with pytest.raises(ServingError, match="no room for 2 more edits") as error:
        fresh.load(settings.root / "acme", other)
    assert error.value.status == 507 and fresh.banks._keys.data_ptr() == address
    assert all(key not in fresh._place for key in other)
    with pytest.raises(ServingError, match=r'the longest of 513 rows.*as many "rows"'):
        fresh.put({"long": tuple(part[:1].expand(513, -1) for part in record)})


def test_why_names_the_nearest(settings):
    catalogue = Catalogue(tiny_tokenizer(), settings)
    answer = catalogue.why("Zubrowka has which capital?", "acme")
    assert answer["edit"] == "a" and answer["nearest"][0]["target"] == "Port Adlen"
    assert catalogue.why("What time is it?")["edit"] is None
    json.dumps([edit.to_dict() for edit in catalogue.served("acme")])


def test_template_and_edit_are_those_of_the_store(settings):
    catalogue = Catalogue(tiny_tokenizer(), settings)
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
