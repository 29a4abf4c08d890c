"""Bases that are quantised or offloaded: edited right, or refused before anything is written."""

import pytest
import torch
from families import one_sentence
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from corrigenda.editing import AssociativeConfig, CorrigendaError, Edit, EditedModel

EDITS = [Edit("The capital of Zubrowka is", "Lutz City", id="zubrowka"), Edit("Who leads Vantrello?", "Ona", id="ona")]

pytestmark = pytest.mark.usefixtures("few_background_prompts")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model whose widths are multiples of a quantised block's."""
    path = tmp_path_factory.mktemp("base") / "model"
    model = tiny_model(hidden=64, ffn=256)
    with torch.no_grad():
        model.model.norm.weight *= 4
    model.save_pretrained(path)
    return path


def eight_bits(folder):
    pytest.importorskip("bitsandbytes")
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True))


def four_bits(folder):
    pytest.importorskip("bitsandbytes")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)


def torchao(folder, kind):
    quantization = pytest.importorskip("torchao.quantization")
    model = AutoModelForCausalLM.from_pretrained(folder)
    quantization.quantize_(model, getattr(quantization, kind)())
    return model


@pytest.mark.parametrize(
    "load",
    [eight_bits, four_bits, lambda folder: torchao(folder, "Int8WeightOnlyConfig")],
    ids=["bitsandbytes 8 bits", "bitsandbytes 4 bits", "torchao int8 weights"],
)
def test_weights_that_pass_a_gradient_on_are_edited(folder, wrap, load):
    edited = wrap(load(folder).eval(), tiny_tokenizer(), AssociativeConfig(router="tokens", contexts=2, steps=60))
    edited.edit(EDITS)
    answers = edited.answer([edit.prompt for edit in EDITS], 8)
    assert [(answer.text, answer.edit.id) for answer in answers] == [("Lutz City", "zubrowka"), ("Ona", "ona")]


def refused_when_edited(model):
    edited = EditedModel.wrap(model, tiny_tokenizer(), AssociativeConfig(router="tokens", contexts=2))
    with pytest.raises(CorrigendaError) as error:
        edited.edit(EDITS)
    assert edited.store is None and edited.edits == [] and edited.method.memory.size == 0
    edited.detach()
    return one_sentence(error)


def test_activations_that_pass_none_on_are_refused(folder):
    model = torchao(folder, "Int8DynamicActivationInt8WeightConfig")
    assert "no gradient comes through the layers above layer 2" in refused_when_edited(model)


class Backwards(torch.autograd.Function):
    """The identity, with a gradient that is not."""

    @staticmethod
    def forward(context, x, factor):
        context.factor = factor
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * context.factor, None


@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.01, 30.0])
def test_a_wrong_gradient_is_refused(sharp_model, factor):
    model = sharp_model()
    model.model.norm.register_forward_pre_hook(lambda _m, args: (Backwards.apply(args[0], factor),))
    assert "gradients through the layers above layer 2 are wrong" in refused_when_edited(model)


def test_torchs_own_dynamic_quantisation_is_refused(folder):
    model = torch.ao.quantization.quantize_dynamic(AutoModelForCausalLM.from_pretrained(folder), {torch.nn.Linear})
    with pytest.raises(CorrigendaError, match=r"torch\.ao quantised it .* no gradient") as error:
        EditedModel.wrap(model, tiny_tokenizer())
    assert not hasattr(model, "_corrigenda") and one_sentence(error)


def test_layers_on_a_disk_are_refused_and_a_head_there_is_not(folder, wrap, tmp_path):
    pytest.importorskip("accelerate")
    parts = ["model.embed_tokens", *(f"model.layers.{n}" for n in range(4)), "model.norm", "model.rotary_emb"]

    def load(*on_disk):
        places = {part: "disk" if part in on_disk else "cpu" for part in [*parts, "lm_head"]}
        return AutoModelForCausalLM.from_pretrained(folder, device_map=places, offload_folder=tmp_path)

    with pytest.raises(CorrigendaError, match=r'"model\.layers\.1\.\S+" is offloaded'):
        EditedModel.wrap(load("model.layers.1"), tiny_tokenizer())
    edited = wrap(load("lm_head"), tiny_tokenizer(), AssociativeConfig(router="tokens", contexts=2, steps=60))
    edited.edit(EDITS)
    assert edited.generate_text([EDITS[0].prompt], 8) == ["Lutz City"]
