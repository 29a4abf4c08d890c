"""The caller's modes and the checkpoint's settings do not leak into what is written, answered or scored."""

import contextlib

import pytest
import torch
from cases import same_bits
from tiny import tiny_tokenizer
from transformers import GenerationConfig

from corrigenda.editing import AssociativeConfig, CorrigendaError, Edit, EditedModel, MemoirConfig, WiseConfig

EDITS = [Edit("The capital of Zubrowka is", "Lutz City", id="zubrowka"), Edit("Who leads Vantrello?", "Ona", id="ona")]
PROMPTS = [EDITS[0].prompt, "Why is the sky blue?", EDITS[1].prompt]
CONFIGS = {
    "associative": AssociativeConfig(router="tokens", contexts=2, steps=60),
    "mask router": AssociativeConfig(contexts=2, steps=60, router="mask", router_layer=1),
    "memoir": MemoirConfig(contexts=1, steps=30, eos=True),
    "wise": WiseConfig(contexts=1, steps=3),
}


@contextlib.contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default dtype": default_dtype,
    "default device": default_device,
}

pytestmark = pytest.mark.usefixtures("few_background_prompts")


def in_training(model):
    """As a trainer leaves it: dropout, and gradient checkpointing by either of its ways."""
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.gradient_checkpointing_enable()
    return model.train()


def bits(edited):
    return {name: tensor.clone() for name, tensor in edited.method.state().items()}


def texts(edited):
    return [(answer.text, answer.edit) for answer in edited.answer(PROMPTS, 8)]


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("mode", MODES)
def test_a_mode_around_every_call_changes_nothing(sharp_model, wrap, tmp_path, method, mode):
    plain = wrap(sharp_model(), tiny_tokenizer(), CONFIGS[method])
    plain.edit(EDITS)
    expected, answers, scores = bits(plain), texts(plain), plain.evaluate()
    model = sharp_model()
    with MODES[mode]():
        edited = wrap(model, tiny_tokenizer(), CONFIGS[method])
        edited.edit(EDITS)
        assert texts(edited) == answers and edited.evaluate() == scores
        edited.undo("ona")
        edited.redo("ona")
        edited.save_pretrained(tmp_path / "edits")
    assert all(same_bits(tensor, expected[name]) for name, tensor in bits(edited).items())
    # And outside it afterwards, where tensors that were made in inference mode could not be written to.
    assert texts(edited) == answers
    more = Edit("Who painted the Grebz wall?", "Oto", id="oto")
    edited.edit(more)
    plain.edit(more)
    assert texts(edited) == texts(plain)
    model = edited.detach()
    with MODES[mode]():
        loaded = EditedModel.from_pretrained(model, tmp_path / "edits", tokenizer=tiny_tokenizer())
        assert texts(loaded) == answers
    loaded.edit(more)
    assert texts(loaded) == texts(plain)
    loaded.detach()


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_around_the_models_own_generate_leaves_it_usable(sharp_model, wrap, mode):
    edited = wrap(sharp_model(), tiny_tokenizer(), CONFIGS["associative"])
    edited.edit(EDITS)
    tokenizer = tiny_tokenizer()
    ids = torch.tensor([tokenizer(EDITS[0].prompt)["input_ids"]] * 70)  # more rows than the context has room for
    with MODES[mode]():
        output = edited.model.generate(ids, max_new_tokens=6, do_sample=False)
    again = edited.model.generate(ids, max_new_tokens=6, do_sample=False)
    for row in (output[0], output[-1], again[0]):
        assert tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True).strip() == "Lutz City"


def test_training_mode_and_gradient_checkpointing_change_nothing_and_stay(sharp_model, wrap):
    plain = wrap(sharp_model(), tiny_tokenizer(), CONFIGS["associative"])
    plain.edit(EDITS)
    model = in_training(sharp_model())
    edited = wrap(model, tiny_tokenizer(), CONFIGS["associative"])
    results = edited.edit(EDITS)
    assert all(result.loss < 0.1 for result in results)
    for name, tensor in bits(edited).items():
        assert same_bits(tensor, bits(plain)[name])
    assert texts(edited) == texts(plain) and edited.evaluate() == plain.evaluate()
    inputs = tiny_tokenizer()(EDITS[0].prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert "Lutz City" in tiny_tokenizer().decode(output[0])
    assert model.training and all(module.training for module in model.modules())
    assert model.is_gradient_checkpointing
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_that_was_made_in_inference_mode_is_refused(sharp_model):
    with torch.inference_mode():
        model = sharp_model()
    with pytest.raises(CorrigendaError, match=r"loaded within torch\.inference_mode\(\).*load the model outside it"):
        EditedModel.wrap(model, tiny_tokenizer())
    assert not hasattr(model, "_corrigenda")


def test_a_model_that_is_loaded_here_is_none_of_inference_modes(tmp_path):
    from tiny import save_tiny

    save_tiny(tmp_path / "model")
    with torch.inference_mode():
        edited = EditedModel.from_pretrained(tmp_path / "model", config=CONFIGS["associative"])
        edited.edit(EDITS[0])
    assert edited.answer([EDITS[0].prompt])[0].edit == EDITS[0]


# Settings of the checkpoint


SETTINGS = {
    "repetition_penalty": 3.0,
    "no_repeat_ngram_size": 1,
    "min_new_tokens": 7,
    "num_beams": 3,
    "do_sample": True,
    "temperature": 5.0,
    "suppress_tokens": list(range(3, 300)),
    "forced_eos_token_id": 5,
    "max_new_tokens": 1,
    "cache_implementation": "static",
    "guidance_scale": 2.0,
    "renormalize_logits": True,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_checkpoints_generation_settings_change_neither_answers_nor_scores(sharp_model, wrap, name):
    plain = wrap(sharp_model(), tiny_tokenizer(), CONFIGS["associative"])
    plain.edit(EDITS)
    model = sharp_model()
    ends = model.generation_config.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=ends, **{name: SETTINGS[name]})
    edited = wrap(model, tiny_tokenizer(), CONFIGS["associative"])
    edited.edit(EDITS)
    assert edited.method.prepare() == plain.method.prepare()
    assert texts(edited) == texts(plain) and edited.evaluate() == plain.evaluate()
    assert getattr(model.generation_config, name) == SETTINGS[name]


def test_an_answer_ends_at_any_of_the_models_ends_and_at_the_tokenizers(sharp_model, wrap):
    tokenizer = tiny_tokenizer()
    (city,) = tokenizer(" City", add_special_tokens=False)["input_ids"][:1]
    model = sharp_model()
    model.generation_config = GenerationConfig(eos_token_id=[city])
    edited = wrap(model, tokenizer, CONFIGS["associative"])
    edited.edit(EDITS)
    first, _, last = edited.generate_text(PROMPTS, 8)
    assert first == "Lutz" + tokenizer.decode([city]) and last == "Ona"
