"""Edits that a server cannot hold are refused in one sentence, which says what to do."""

import pytest
from tiny import save_tiny, tiny_model, tiny_tokenizer

from corrigenda.editing import CorrigendaError, Edit, EditedModel
from corrigenda.editing.methods.registry import config_for
from corrigenda.serving import launcher
from corrigenda.serving.errors import ServingError
from corrigenda.serving.stores import open_store, served_config

EDIT = Edit("What does Kmelt make?", "red bricks", subject="Kmelt", id="c")
pytestmark = pytest.mark.usefixtures("few_background_prompts")


@pytest.mark.parametrize(
    ("method", "settings", "sentence"),
    [
        ("rome", {"contexts": 1, "steps": 2}, "`corrigenda bake` writes of edits as any model"),
        ("ft-m", {"steps": 1}, "`corrigenda bake` writes of edits as any model"),
        ("rome", {"contexts": 1, "steps": 2, "router": "tokens"}, 'of edits of router="none" as any model'),
        ("coachhook", {"contexts": 1, "steps": 2, "layer": 2}, "found by features of the whole prompt"),
        ("lora", {"steps": 1}, "`corrigenda bake` writes of edits as any model"),
        ("grace", {"steps": 1}, "found by features of the whole prompt"),
        ("melo", {"steps": 1}, "found by features of the whole prompt"),
        ("rag", {}, "put before a question as text"),
        ("lte", {"alignment_edits": 2, "rounds": 1, "rank": 2, "answer_tokens": 2}, "put before a question as text"),
        ("token-vectors", {"steps": 1}, "vectors of tokens"),
    ],
)
def test_the_sentence_names_the_way_out(tmp_path, method, settings, sentence):
    edited = EditedModel.wrap(tiny_model(), tiny_tokenizer(), config_for(method, **settings))
    edited.edit(EDIT, store=tmp_path / "edits")
    edited.close()
    edited.detach()
    store = open_store(tmp_path / "edits")
    with pytest.raises(ServingError, match=sentence):
        served_config(store)
    store.close()


def test_a_folder_is_looked_at_before_a_model_is_loaded(tmp_path, monkeypatch):
    pytest.importorskip("openai", reason="the extra `serve` is not installed")
    save_tiny(tmp_path / "model")
    monkeypatch.setattr(launcher, "LiveEdits", lambda *_: pytest.fail("the model is on its way"))
    with pytest.raises(CorrigendaError, match=r"There is no folder .*nowhere with saved edits"):
        launcher.launch("transformers", str(tmp_path / "model"), {"edits": str(tmp_path / "nowhere")})
