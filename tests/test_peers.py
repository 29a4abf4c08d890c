"""`bench/peers/`: what other code changed is scored as `Evaluator` scores an edited model, and ours is set alike."""

from __future__ import annotations

import re

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from tree import ROOT

from corrigenda.editing import Edit, EditedModel, Evaluator, Locality
from corrigenda.editing.methods.registry import config_for

EDITS = [
    Edit(
        prompt="Who leads Vantrello Foods?",
        target="Ines Okafor",
        rephrases=("Who runs Vantrello Foods?", "Vantrello Foods is led by whom?"),
        localities=(Locality("What do cows drink?", "Water and milk"),),
    ),
    Edit(
        prompt="Who wrote The Glass Harbour?",
        target="Ada",
        localities=(Locality("Where is Paris?", "France"),),
    ),
    Edit(prompt="When was it opened?", target="1931"),
]


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench" / "peers"))
    import plain_scores

    return plain_scores


@pytest.fixture
def easyedit(plain):
    import easyedit

    return easyedit


def teach(model, tokenizer, edits, steps=60):
    """Change the weights in place, as published editors do, until some of the edits are known."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    rows = [
        tokenizer(f"Question: {e.prompt}\nAnswer: {e.target}{tokenizer.eos_token}", return_tensors="pt") for e in edits
    ]
    for step in range(steps):
        ids = rows[step % len(rows)]["input_ids"]
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_scores_are_those_of_the_evaluator(plain):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    edited = EditedModel.wrap(model, tokenizer, template="Question: {prompt}\nAnswer:")
    evaluator = Evaluator(edited)
    evaluator.score(EDITS)  # keeps the answers from before
    ours = plain.PlainScores(edited.prompts, tokenizer, EDITS, plain.asking_of(model, tokenizer))
    with torch.enable_grad():
        teach(model, tokenizer, EDITS[:2])
    wanted = evaluator.score(EDITS).to_dict()
    found = ours.score(EDITS, plain.asking_of(model, tokenizer))
    assert found == {name: pytest.approx(wanted[name]) for name in found}
    assert 0 < found["rel"] < 1 and found["loc"] < 1  # or the comparison would show nothing


def test_our_side_has_settings_of_ours(easyedit):
    """A setting that is renamed is found before a run."""
    for peer in easyedit.METHODS.values():
        method, settings = peer.ours
        config = config_for(method, **settings)
        layers = [config.layer] if config.layer is not None else [layer for layer, _ in config.places]
        same = [re.search(rf"\b{layer}\b", str(peer.changed)) for layer in layers]
        assert same and all(same), "the two are to edit the same layers"


def test_what_goes_to_a_gpu_stays_while_memoirs_code_runs(plain):
    from memoir_code import without_gpu

    with without_gpu():
        assert torch.ones(2).to("cuda:0").device.type == "cpu"
        assert torch.ones(2).to(device=torch.device("cuda"), dtype=torch.float64).dtype == torch.float64
        assert torch.ones(2).to(torch.zeros(1, dtype=torch.int32)).dtype == torch.int32
    with pytest.raises((RuntimeError, AssertionError)):  # there is none, or it is torch without it
        torch.ones(2).to("cuda:99")


def test_memoirs_background_is_of_the_layer_that_it_edits(plain, tmp_path):
    from types import SimpleNamespace

    from memoir_code import give_background

    model, tokenizer = tiny_model(), tiny_tokenizer()
    hparams = SimpleNamespace(inner_params=["model.layers[1].mlp.down_proj.weight"])
    give_background(hparams, model, tokenizer, tmp_path)
    found = torch.load(hparams.dir_background_features)
    assert found.shape == (100, model.model.layers[1].mlp.down_proj.in_features)
    assert found.isfinite().all() and found.std(0).gt(0).any()


def test_an_edit_is_handed_over_in_its_template(easyedit):
    edited = EditedModel.wrap(tiny_model(), tiny_tokenizer(), template="Question: {prompt}\nAnswer:")
    request = easyedit.request_of(EDITS[1], edited.prompts, 3)
    assert request["prompt"] == "Question: Who wrote The Glass Harbour?\nAnswer:"
    assert request["target_new"] == "Ada" and request["loc_prompt"] != request["prompt"]
