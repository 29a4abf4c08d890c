"""Adapters learnt by PEFT against their formulas in float64; wordings; and what they leave of the model."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
import torch.nn.functional as F
from stores import refusal
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from corrigenda.editing import Edit
from corrigenda.editing.backbone.decoder import Decoder
from corrigenda.editing.backbone.frozen import Row
from corrigenda.editing.backbone.modes import frozen
from corrigenda.editing.methods import adapters
from corrigenda.editing.methods.adapters import Training, learn_adapters, target_modules
from corrigenda.editing.methods.lora.config import LoraConfig
from corrigenda.editing.methods.stableke import wordings as module
from corrigenda.editing.methods.stableke.config import StableKeConfig
from corrigenda.editing.methods.stableke.wordings import given, wordings
from corrigenda.editing.model.baking import bake

ROWS = [Row((5, 90, 33, 17), (44, 2)), Row((7, 300, 21), (60, 61, 62))]
HOW = Training(rank=3, alpha=6.0, dropout=0.0, learning_rate=1e-2, steps=4, batch_size=2, seed=5)
EDIT = Edit("Who leads Vantrello Foods?", "Ines Okafor", subject="Vantrello Foods", id="v")


def in_float64(model, modules, start, rows, steps, rate, scale):
    """down `[rank, D]` and scaled up `[rank, d]` of each map after Adam, by plain formulas: W x + scale up^T down x."""
    model = copy.deepcopy(model).double().requires_grad_(False)
    downs = {site: pair.down.double().clone().requires_grad_() for site, pair in start.items()}
    ups = {site: torch.zeros_like(pair.up).double().requires_grad_() for site, pair in start.items()}
    layers = {site: model.model.layers[int(site.split(".")[0])].self_attn for site in modules}
    for site in modules:
        getattr(layers[site], site.rpartition(".")[2]).register_forward_hook(
            lambda _m, args, out, site=site: out + scale * (args[0] @ downs[site].T) @ ups[site]
        )
    optimizer = torch.optim.Adam([*downs.values(), *ups.values()], lr=rate)
    for _ in range(steps):
        losses = []
        for row in rows:
            logits = model(torch.tensor([row.tokens])).logits[0, len(row.prompt) - 1 :]
            losses.append(F.cross_entropy(logits, torch.tensor(row.labels)))
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    return downs, {site: scale * up for site, up in ups.items()}


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_equals_the_formulas_in_float64(kind):
    decoder = Decoder(tiny_model(kind))
    modules = target_modules(decoder, "q_proj,v_proj")
    with frozen(decoder.model):
        start, _, _ = learn_adapters(decoder, modules, ROWS, Training(**{**vars(HOW), "steps": 0}))
        found, _, steps = learn_adapters(decoder, modules, ROWS, HOW)
    assert steps == 4 and len(found) == 8
    downs, ups = in_float64(decoder.model, modules, start, ROWS, 4, HOW.learning_rate, HOW.alpha / HOW.rank)
    for site, pair in found.items():
        torch.testing.assert_close(pair.down.double(), downs[site].detach(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(pair.up.double(), ups[site].detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_afterwards_as_it_was(monkeypatch, fails):
    decoder = Decoder(tiny_model())
    model, ids = decoder.model, torch.tensor([[3, 9, 44]])
    before, names, modules = model(ids).logits, sorted(vars(model)), dict(model.named_modules())
    state = torch.get_rng_state()
    if fails:
        monkeypatch.setattr(adapters, "_pair", lambda layer: 1 / 0)
    try:
        learn_adapters(decoder, target_modules(decoder, "q_proj"), ROWS, HOW)
    except ZeroDivisionError:
        assert fails
    assert sorted(vars(model)) == names and dict(model.named_modules()) == modules
    assert model(ids).logits.equal(before) and torch.get_rng_state().equal(state)


def test_what_was_learnt_before_is_part_of_what_is_adapted(wrap):
    """The second edit's adapter is learnt beside the first, and the sum is what answers."""
    edited = wrap(tiny_model(), tiny_tokenizer(), LoraConfig(steps=3, dropout=0.0, rank=2))
    other = Edit("What does Kmelt make?", "red bricks", id="k")
    edited.edit([EDIT, other], keep_unsolved=True)
    beside = edited.method.memory.matrices["0.self_attn.q_proj"].clone()
    edited.undo("v")
    alone = edited.method.memory.matrices["0.self_attn.q_proj"].clone()
    fresh = wrap(tiny_model(), tiny_tokenizer(), LoraConfig(steps=3, dropout=0.0, rank=2))
    fresh.edit(other, keep_unsolved=True)
    assert not torch.equal(alone, fresh.method.memory.matrices["0.self_attn.q_proj"])
    assert not torch.equal(beside, alone)


def test_adapters_are_baked_into_a_plain_model(wrap, tmp_path):
    edited = wrap(tiny_model(), tiny_tokenizer(), LoraConfig(steps=3, rank=2))
    edited.edit(EDIT, keep_unsolved=True)
    assert bake(edited, tmp_path / "model") < 1e-3
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.tensor([edited.prompts.encode(EDIT.prompt)])
    options = {"max_new_tokens": 4, "do_sample": False}
    assert plain.generate(ids, **options).equal(edited.generate(ids, **options))


def test_learning_may_end_early_and_says_after_how_many_steps(wrap):
    edited = wrap(tiny_model(), tiny_tokenizer(), LoraConfig(steps=40, stop_loss=2.5, dropout=0.0))
    (written,) = edited.edit(EDIT, keep_unsolved=True)
    assert 0 < written.steps < 40 and written.loss < 2.6


def test_a_model_with_adapters_and_a_wrong_module_are_refused():
    model = tiny_model()
    decoder = Decoder(model)
    with refusal("nope"):
        target_modules(decoder, "q_proj,nope")
    peft.tuners.lora.LoraModel(model, {"mine": peft.LoraConfig(target_modules=["q_proj"])}, "mine")
    with refusal("PEFT", "merge"):
        learn_adapters(decoder, target_modules(decoder, "v_proj"), ROWS, HOW)


def test_the_wordings_of_a_record_are_taken_as_they_are():
    edit = Edit(EDIT.prompt, EDIT.target, metadata={"paraphrases": ["Who is its head?", "Who runs it?"]})
    assert given(edit, "paraphrases", 1) == ["Who is its head?"]
    assert given(edit, "descriptions", 1) is None
    with refusal("paraphrases", "list of texts"):
        given(Edit(EDIT.prompt, EDIT.target, metadata={"paraphrases": "one"}), "paraphrases", 1)


def test_what_the_model_writes_is_taken_where_it_is_of_use(monkeypatch):
    said = ["Who is the head of VANTRELLO FOODS?", "Who runs it?", "Ines Okafor leads it.", "Nothing of the kind."]
    monkeypatch.setattr(module, "own_texts", lambda *asked: said)
    found = wordings(None, None, EDIT, 2, 2, 8)
    assert found.paraphrases == [said[0], EDIT.prompt]
    assert found.descriptions == [said[2], "Who leads Vantrello Foods? Ines Okafor"]


def test_the_model_writes_a_line_of_its_own_to_each_request():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    requests = ["Ask this in other words: Who?", "Go on"]
    found = module.own_texts(model, tokenizer, requests, 6)
    assert len(found) == 2 and all("\n" not in text for text in found)
    assert [module.own_texts(model, tokenizer, [request], 6)[0] for request in requests] == found


def test_stableke_learns_prompt_wordings_and_descriptions(wrap):
    metadata = {"paraphrases": ["Who is its head?", EDIT.prompt], "descriptions": ["Ines Okafor leads Vantrello."]}
    edit = Edit(EDIT.prompt, EDIT.target, metadata=metadata)
    edited = wrap(tiny_model(), tiny_tokenizer(), StableKeConfig())
    (rows,) = edited.method.learnt_from([edit])
    decode, eos = edited.tokenizer.decode, edited.prompts.eos
    texts = [decode([*row.prompt, *row.labels]) for row in rows]
    end = decode([eos])
    assert texts == [
        f"{EDIT.prompt} Ines Okafor{end}",
        f"Who is its head? Ines Okafor{end}",
        f"Ines Okafor leads Vantrello.{end}",
    ]
    assert len(rows[2].prompt) == 1


def test_settings_that_cannot_be_are_refused():
    for wrong in ({"dropout": 1.0}, {"rank": 0}, {"alpha": -1.0}, {"stop_loss": -1.0}):
        with refusal(next(iter(wrong))):
            LoraConfig(**wrong)
    with refusal("paraphrases"):
        StableKeConfig(paraphrases=-1)
