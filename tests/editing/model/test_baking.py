"""Baking: edits as a plain model folder; and undoing an edit with what was solved after it solved anew."""

import pytest
import torch
from cases import same_bits
from tiny import save_tiny, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from corrigenda.editing import Edit, EditedModel
from corrigenda.editing.cli import app
from corrigenda.editing.errors import CorrigendaError
from corrigenda.editing.methods.registry import config_for
from corrigenda.editing.model.baking import bake

EDITS = [
    Edit("What is the capital of Zubrowka?", "Lutz City", subject="Zubrowka", id="a"),
    Edit("Who founded the Krellin museum?", "Anna Blom", subject="Krellin museum", id="b"),
    Edit("What does Kmelt make?", "red bricks", subject="Kmelt", id="c"),
    Edit("Where do the Grebz live?", "on the hills", subject="Grebz", id="d"),
]
SETTINGS = {
    "rome": {"contexts": 2, "steps": 5, "layer": 1, "batch_size": 2},
    "memit": {"contexts": 2, "steps": 5, "layer": 2, "first_layer": 1, "batch_size": 2, "covariance_weight": 10.0},
    "ultraedit": {"modules": "gate_proj:1,down_proj:2", "learning_rate": 1e-3, "batch_size": 2},
}
pytestmark = pytest.mark.usefixtures("few_background_prompts")


@pytest.mark.parametrize("method", SETTINGS)
def test_a_baked_model_answers_as_the_edited_one(wrap, tmp_path, method):
    edited = wrap(tiny_model(), tiny_tokenizer(), config_for(method, **SETTINGS[method]))
    edited.edit(EDITS)
    assert bake(edited, tmp_path / "baked") < 1e-4
    baked = AutoModelForCausalLM.from_pretrained(tmp_path / "baked").eval()
    ids = torch.tensor([edited.prompts.encode(EDITS[1].prompt)])
    options = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    found, wanted = (
        torch.stack(baked.generate(ids, **options).logits),
        torch.stack(edited.generate(ids, **options).logits),
    )
    base = torch.stack(edited.detach().generate(ids, **options).logits)
    assert (found - wanted).abs().max() < 1e-3 < (found - base).abs().max()
    assert not list(tmp_path.glob(".*partial*"))


def test_what_no_plain_model_can_hold_is_not_baked(wrap, tmp_path):
    routed = wrap(tiny_model(), tiny_tokenizer(), config_for("associative", contexts=1, steps=2))
    with pytest.raises(CorrigendaError, match="method associative answer only requests that are routed"):
        bake(routed, tmp_path / "baked")
    gated = wrap(tiny_model(), tiny_tokenizer(), config_for("rome", contexts=1, steps=2, router="tokens"))
    with pytest.raises(CorrigendaError, match='gated by a router \\(router="tokens"\\)'):
        bake(gated, tmp_path / "baked")
    empty = wrap(tiny_model(), tiny_tokenizer(), config_for("rome", contexts=1, steps=2))
    with pytest.raises(CorrigendaError, match="There are no edits to bake"):
        bake(empty, tmp_path / "baked")
    assert not (tmp_path / "baked").exists()


def test_one_that_differs_is_not_kept(wrap, tmp_path, monkeypatch):
    edited = wrap(tiny_model(), tiny_tokenizer(), config_for("rome", **SETTINGS["rome"]))
    edited.edit(EDITS[:1])
    monkeypatch.setattr("corrigenda.editing.model.baking._LARGEST", {torch.float32: -1.0})
    with pytest.raises(CorrigendaError, match="was not kept: its logits differ"):
        bake(edited, tmp_path / "baked")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", SETTINGS)
def test_resolved_an_undo_gives_the_bits_of_a_stream_without_the_edit(wrap, method):
    config = config_for(method, **SETTINGS[method])
    edited = wrap(tiny_model(), tiny_tokenizer(), config)
    edited.edit(EDITS)
    taken_out = edited.method.memory.copy()
    change = edited.undo("b", resolve=True)
    assert [stored.id for stored in change.edits] == ["b"] and "3 edits" in change.notes[-1]
    assert [edit.id for edit in edited.edits] == ["a", "c", "d"]
    other = wrap(tiny_model(), tiny_tokenizer(), config)
    other.edit(EDITS[:1])
    other.edit(EDITS[2:])
    for site, matrix in other.method.memory.matrices.items():
        assert same_bits(edited.method.memory.matrices[site], matrix)
        assert not torch.equal(taken_out.matrices[site], matrix)
    history = edited.store.history
    assert "re-solved" in next(stored for stored in history.edits.values() if stored.id == "b").events[-1]["note"]


def test_where_solving_anew_fails_nothing_has_changed(wrap, monkeypatch):
    edited = wrap(tiny_model(), tiny_tokenizer(), config_for("rome", **SETTINGS["rome"]))
    edited.edit(EDITS)
    before = {site: matrix.clone() for site, matrix in edited.method.memory.matrices.items()}
    solve, calls = edited.method.solve, []

    def failing(edits):
        calls.append(edits)
        if len(calls) == 2:
            raise CorrigendaError("No.")
        return solve(edits)

    monkeypatch.setattr(edited.method, "solve", failing)
    with pytest.raises(CorrigendaError, match=r"^No\."):
        edited.undo("a", resolve=True)
    assert [edit.id for edit in edited.edits] == ["a", "b", "c", "d"]
    for site, matrix in before.items():
        assert same_bits(edited.method.memory.matrices[site], matrix)


def test_from_the_command_line(tmp_path):
    model = save_tiny(tmp_path / "model")
    edited = EditedModel.from_pretrained(model, config=config_for("rome", **SETTINGS["rome"]))
    edited.edit(EDITS, store=tmp_path / "edits")
    edited.close()
    runner = CliRunner()

    def run(*arguments):
        result = runner.invoke(app, [str(argument) for argument in arguments])
        return result.exit_code, " ".join(result.output.split())

    assert run("bake", tmp_path / "edits", "--out", tmp_path / "baked")[0] == 0
    assert (tmp_path / "baked" / "config.json").is_file()
    code, said = run("undo", tmp_path / "edits", "d")
    assert code == 2 and "--resolve solves them anew" in said
    code, said = run("undo", tmp_path / "edits", "d", "--leave-others")
    assert code == 0 and "Took out 1 edit: d." in said
    code, said = run("undo", tmp_path / "edits", "a", "--resolve")
    assert code == 0 and "Took out 1 edit: a. 2 edits beside it or after it solved anew." in said
    code, said = run("why", tmp_path / "edits", "What does Kmelt make?")
    assert code == 0 and "changed weights" in said


def test_a_covariance_of_a_text_is_written_and_used(tmp_path, wrap):
    model, text = save_tiny(tmp_path / "model"), tmp_path / "text.txt"
    text.write_text("The old mill stood by the river.\n\nWho lives there now?\n" * 30, encoding="utf-8")
    out, runner = tmp_path / "covariance.safetensors", CliRunner()
    arguments = ["covariance", "--text", text, "--layers", "1-2", "--out", out, "--model", model]
    result = runner.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    settings = {**SETTINGS["memit"], "covariance": str(out)}
    edited = wrap(tiny_model(), tiny_tokenizer(), config_for("memit", **settings))
    edited.edit(EDITS[:2])
    found, keys = edited.method.covariance(1), []
    edited.detach()
    handle = edited.model.model.layers[1].mlp.down_proj.register_forward_pre_hook(
        lambda _m, args: keys.append(args[0][0])
    )
    for line in ("The old mill stood by the river.", "Who lives there now?"):
        edited.model(torch.tensor([edited.tokenizer(line)["input_ids"]]))
    handle.remove()
    every = torch.cat(keys).double()
    assert torch.allclose(found, every.T @ every / len(every), atol=1e-5)
    other = wrap(tiny_model(seed=1), tiny_tokenizer(), config_for("memit", **settings))
    with pytest.raises(CorrigendaError, match="is another model's: its weights differ"):
        other.edit(EDITS[:2])
    result = runner.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code != 0 and "is there already" in result.output
