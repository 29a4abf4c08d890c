"""Families of models, each as a tiny random one: edited and answering, or refused in one sentence with nothing written.

The table in README.md names them.
"""

import functools

import pytest
import torch
import transformers
from cases import same_bits
from families import one_sentence
from tiny import tiny_tokenizer

from corrigenda.editing import AssociativeConfig, CorrigendaError, Edit, EditedModel, MemoirConfig

EDITS = [Edit("The capital of Zubrowka is", "Lutz City", id="zubrowka"), Edit("Who leads Vantrello?", "Ona", id="ona")]
PROMPTS = [EDITS[0].prompt, "Why is the sky blue?", EDITS[1].prompt]

PLAIN = {
    "Llama": {},
    "Mistral": {"sliding_window": 32},
    "Ministral": {"sliding_window": 32},
    "Qwen2": {},
    "Qwen3": {},
    "Gemma": {},
    "Olmo": {},
    "Glm": {},
    "Phi3": {},
    "StableLm": {},
    "SmolLM3": {},
    "Helium": {},
    "Nemotron": {},
    "Apertus": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "Arcee": {},
    "SeedOss": {},
    "Ernie4_5": {},
    "Jais2": {},
    "Doge": {},
    "DiffLlama": {},
}
NOT_PLAIN = {
    "VaultGemma": {"sliding_window": 8},
    "Gemma2": {"query_pre_attn_scalar": 16, "sliding_window": 8},
    "Gemma3Text": {"sliding_window": 8, "query_pre_attn_scalar": 16},
    "Olmo2": {},
    "Olmo3": {"sliding_window": 8},
    "OlmoHybrid": {},
    "Cohere": {"logit_scale": 0.25},
    "Cohere2": {"sliding_window": 8, "logit_scale": 0.25},
    "Glm4": {},
    "Granite": {"logits_scaling": 2.0, "residual_multiplier": 0.5, "embedding_multiplier": 4.0},
    "Exaone4": {"sliding_window": 8},
    "HyperCLOVAX": {"use_post_norm": True},
    "Qwen3_5Text": {
        **{"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16},
        **{"linear_value_head_dim": 16, "layer_types": ["linear_attention"] * 3 + ["full_attention"]},
    },
    "Qwen3Next": {
        **{"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16},
        **{"linear_value_head_dim": 16, "mlp_only_layers": [0, 1, 2, 3], "num_experts": 2},
        **{"layer_types": ["linear_attention"] * 3 + ["full_attention"]},
    },
}
OF_THE_FFN = tuple(f".2.{norm}" for norm in ("post_feedforward_layernorm", "post_mlp_layernorm", "post_norm2"))
"""What norms the edited layer's FFN, where anything does: an edit can weigh no more in the stream than such a norm."""


@functools.cache
def family(name):
    """A tiny random model, its logits sharp enough to be sure of a token: for reading alone."""
    return made(name)


def made(name):
    settings = {
        **{"vocab_size": len(tiny_tokenizer()), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256},
        **{"initializer_range": 0.1, "tie_word_embeddings": False, "bos_token_id": None},
        **{"eos_token_id": tiny_tokenizer().eos_token_id, "pad_token_id": tiny_tokenizer().pad_token_id},
        **{**PLAIN, **NOT_PLAIN}.get(name, REFUSED.get(name, {})),
    }
    config = getattr(transformers, f"{name}Config")(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for part, module in model.named_modules():
            if part.endswith((".norm", *OF_THE_FFN)) and getattr(module, "weight", None) is not None:
                module.weight += 3 if part.endswith(".norm") else 15
    return model


@pytest.mark.usefixtures("few_background_prompts")
@pytest.mark.parametrize("name", [*PLAIN, *NOT_PLAIN])
def test_a_family_is_edited_and_answers(wrap, name):
    model = made(name)
    edited = wrap(model, tiny_tokenizer(), AssociativeConfig(router="tokens", contexts=2, steps=80))
    unedited = family(name)
    edited.edit(EDITS)
    assert edited.decoder.is_plain(edited.config.layer) == (name in PLAIN)
    answers = edited.answer(PROMPTS, 8)
    assert [answer.text for answer in answers[::2]] == ["Lutz City", "Ona"]
    assert [answer.edit and answer.edit.id for answer in answers] == ["zubrowka", None, "ona"]
    inputs = tiny_tokenizer()(PROMPTS[1], return_tensors="pt")
    options = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    ours, theirs = model.generate(**inputs, **options), unedited.generate(**inputs, **options)
    assert all(same_bits(a, b) for a, b in zip(ours.logits, theirs.logits, strict=True))
    edited.undo("ona")
    assert edited.answer(PROMPTS[2:])[0].edit is None


@pytest.mark.usefixtures("few_background_prompts")
@pytest.mark.parametrize("name", ["Gemma3Text", "Granite", "Glm4"])
def test_a_shared_matrix_is_written_through_other_forwards_too(wrap, name):
    """Full scope: the memory acts on every token of a prompt."""
    edited = wrap(made(name), tiny_tokenizer(), MemoirConfig(contexts=2, steps=60, eos=True, learning_rate=4.0))
    results = edited.edit(EDITS)
    (answer,) = edited.answer([EDITS[0].prompt], 8)
    assert answer.text.startswith("Lutz City") and answer.edit.id == "zubrowka" and results[0].loss < 1


@pytest.mark.usefixtures("few_background_prompts")
def test_saved_edits_of_another_forward_load_again(wrap, tmp_path):
    edited = wrap(made("Olmo2"), tiny_tokenizer(), AssociativeConfig(contexts=1, router="mask", steps=80))
    edited.edit(EDITS)
    edited.save_pretrained(tmp_path / "edits")
    loaded = EditedModel.from_pretrained(made("Olmo2"), tmp_path / "edits", tokenizer=tiny_tokenizer())
    assert loaded.answer(PROMPTS, 8) == edited.answer(PROMPTS, 8)
    assert loaded.method.routes(PROMPTS).route.tolist() == [0, -1, 1]
    loaded.detach()


# Refused

REFUSED = {
    "Gemma4Text": {},
    "MiniCPM3": {},
    "Starcoder2": {},
    "NanoChat": {},
    "Lfm2": {},
    "Mixtral": {},
    "DeepseekV3": {},
    "GptOss": {},
    "Bamba": {},
    "FalconH1": {},
    "Mamba": {},
    "Llama4Text": {},
    "Bloom": {},
    "GPTNeoX": {},
    "Phi": {},
    "Persimmon": {},
}
BY_ITS_FORWARD = ("Gemma4Text", "MiniCPM3")


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_does_not_fit_is_refused_in_one_sentence(name):
    model = made(name)
    if name not in BY_ITS_FORWARD:
        with pytest.raises(CorrigendaError, match="could not be found in it") as error:
            EditedModel.wrap(model, tiny_tokenizer())
        assert not hasattr(model, "_corrigenda") and "generate" not in vars(model)
    else:
        edited = EditedModel.wrap(model, tiny_tokenizer())
        with pytest.raises(CorrigendaError, match="cannot be taken apart at the down-projection of layer 2") as error:
            edited.edit(EDITS)
        assert edited.store is None and edited.edits == [] and edited.method.memory.size == 0
        edited.detach()
    assert type(model).__name__ in one_sentence(error)
