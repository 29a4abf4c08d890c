"""The model that carries edits, in others' hands: pipelines, copies, checkpoints; edited, or the base model's alone."""

import copy
import pickle
import warnings
from dataclasses import replace

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, pipeline

from corrigenda.editing import AssociativeConfig, CorrigendaError, Edit, EditedModel, MemoirConfig, WiseConfig
from corrigenda.editing.backbone.wrappers import unwrapped

EDITS = [Edit("The capital of Zubrowka is", "Lutz City", id="zubrowka"), Edit("Who leads Vantrello?", "Ona", id="ona")]
PROMPT, UNRELATED = EDITS[0].prompt, "Why is the sky blue?"
SETTINGS = AssociativeConfig(router="tokens", contexts=1, steps=60)


@pytest.fixture
def edited(sharp_model, wrap, few_background_prompts):
    model = wrap(sharp_model(), tiny_tokenizer(), SETTINGS)
    model.edit(EDITS)
    return model


def encoded(*prompts):
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    return tokenizer(list(prompts), return_tensors="pt", padding=True)


def said(model, prompt=PROMPT, **options):
    """What the model's own `generate` answers, greedily."""
    inputs = encoded(prompt)
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False, **options)
    return tiny_tokenizer().decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


# Whoever calls it


def test_the_models_own_generate_answers_by_the_edits(edited, sharp_model):
    assert said(edited.model) == "Lutz City"
    assert said(edited.model, EDITS[1].prompt) == "Ona"
    assert said(edited.model, UNRELATED) == said(sharp_model(), UNRELATED)
    (ids,) = encoded(PROMPT)["input_ids"].tolist()
    assert edited.model.generate(torch.tensor([ids]), max_new_tokens=1).tolist() == [
        [*ids, tiny_tokenizer().encode(" Lutz")[0]]
    ]


def test_a_pipeline_of_the_model_answers_by_the_edits(edited):
    ask = pipeline("text-generation", model=edited.model, tokenizer=tiny_tokenizer())
    (answer,) = ask(PROMPT, max_new_tokens=8, do_sample=False, return_full_text=False)
    assert answer["generated_text"].strip() == "Lutz City"


def test_a_pipeline_of_the_edited_model_is_told_which_model_to_take(edited):
    with pytest.raises(AttributeError, match=r"EditedModel has no \w+: .* is its attribute `model`"):
        pipeline("text-generation", model=edited, tokenizer=tiny_tokenizer())


def test_a_pinned_version_answers_through_the_models_own_generate(edited):
    with edited.pin():
        edited.undo("zubrowka")
        assert said(edited.model) == "Lutz City"
    assert said(edited.model) != "Lutz City"


def test_embeddings_alone_are_refused(edited):
    embeds = edited.model.get_input_embeddings()(encoded(PROMPT)["input_ids"])
    with pytest.raises(CorrigendaError, match="input_ids"):
        edited.model.generate(inputs_embeds=embeds, max_new_tokens=2)


def test_a_forward_without_a_description_warns_once(edited, sharp_model, recwarn):
    ids = encoded(PROMPT)["input_ids"]
    with torch.no_grad():
        with pytest.warns(UserWarning, match="not told where its prompts end"):
            logits = edited.model(ids).logits
        assert torch.equal(logits, sharp_model()(ids).logits)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            edited.model(ids)


def test_nobody_is_warned_of_what_the_project_itself_asks(sharp_model, wrap, tmp_path):
    """Contexts are written, and the structure is checked, by the base model, also where edits were loaded before."""
    first = wrap(sharp_model(), tiny_tokenizer(), AssociativeConfig(router="tokens", contexts=2, steps=20))
    first.edit(EDITS[0])
    first.save_pretrained(tmp_path / "edits")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Nothing is written into")  # what `edit` says of a folder only loaded
        again = type(first).from_pretrained(sharp_model(), tmp_path / "edits", tokenizer=tiny_tokenizer())
        again.edit(EDITS[1])
        again.evaluate(free=True)
        assert said(again.model) == said(first.model) == "Lutz City"
    assert again.method.prepare() == first.method.prepare()
    again.detach()


def test_without_edits_nobody_is_warned(wrap):
    edited = wrap(tiny_model(), tiny_tokenizer(), SETTINGS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edited.model(encoded(PROMPT)["input_ids"])


# Names, tensors and copies


def test_names_and_tensors_are_the_base_models(edited, sharp_model, tmp_path):
    base = sharp_model()
    for ours, theirs in ((edited.model.state_dict(), base.state_dict()), (dict(edited.model.named_parameters()),) * 2):
        assert list(ours) == list(theirs)
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert [name for name, _ in edited.model.named_modules()] == [name for name, _ in base.named_modules()]
    edited.model.load_state_dict(base.state_dict())
    edited.model.save_pretrained(tmp_path)
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert said(again) == said(base) != "Lutz City"
    assert said(edited.model) == "Lutz City"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("config", [SETTINGS, MemoirConfig(contexts=1, steps=2), WiseConfig(contexts=1, steps=2)])
def test_a_copy_of_the_model_is_the_base_model(sharp_model, wrap, few_background_prompts, copied, config):
    edited = wrap(sharp_model(), tiny_tokenizer(), config)
    edited.edit(EDITS[0])
    inputs = encoded(PROMPT)
    other = copied(edited.model)
    assert not any(name in vars(other) for name in ("_corrigenda", "generate", "prepare_inputs_for_generation"))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in other.modules())
    with torch.no_grad():
        assert torch.equal(other(**inputs).logits, sharp_model()(**inputs).logits)
    assert said(other) == said(sharp_model())
    again = wrap(other, tiny_tokenizer(), SETTINGS)
    again.edit(Edit(PROMPT, "Oto", id="other"))
    assert said(other) == "Oto"
    edited.detach()
    assert said(edited.model) == said(sharp_model())


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_an_edited_model_says_how_it_is_copied(edited, copied):
    with pytest.raises(CorrigendaError, match=r"save_pretrained"):
        copied(edited)


def test_detaching_leaves_no_trace(edited, sharp_model):
    model = edited.detach()
    assert vars(model).keys() == vars(sharp_model()).keys()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("__getstate__" in vars(module) for module in model.modules())


def test_a_map_that_was_exchanged_under_the_edits_is_named(edited):
    """`merge_and_unload` and the like put another module in the place of the edited one, and the hook is gone."""
    mlp = edited.model.model.layers[edited.config.layer].mlp
    mlp.down_proj = copy.deepcopy(mlp.down_proj)
    with pytest.raises(CorrigendaError, match=r"down_proj of layer 2 .* detach"):
        said(edited.model)


def test_no_edit_is_written_beside_those_of_other_weights(sharp_model, wrap, few_background_prompts, tmp_path):
    """They would be in a folder that neither these weights nor those of before open."""
    base = sharp_model()
    edited = wrap(base, tiny_tokenizer(), SETTINGS)
    edited.edit(EDITS[0], store=tmp_path / "edits")
    edited.model.half().float()  # another precision in between is the same checkpoint
    edited.edit(Edit("Who painted the Grebz wall?", "Oto", id="oto"))
    with torch.no_grad():
        base.model.norm.weight.mul_(1.1)
    with pytest.raises(CorrigendaError, match=r"weights have changed since .* write all of them anew"):
        edited.edit(EDITS[1])
    assert edited.store.history.find("ona") is None


# In other libraries' wrappers


def with_lora(model, targets, kind=LoraConfig, **settings):
    """The model with a trained adapter: one that changes what every layer makes."""
    adapted = get_peft_model(model, kind(target_modules=targets, task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "ia3_" in name:
                change = torch.randn(parameter.shape, generator=generator) * 0.1
                parameter.copy_(1 + change if "ia3_" in name else change)
    return adapted.eval()


ADAPTERS = {
    "attention": lambda model: with_lora(model, ["q_proj", "v_proj"]),
    "down_proj": lambda model: with_lora(model, ["down_proj", "up_proj"]),
    "everything, dropout": lambda model: with_lora(model, "all-linear", lora_dropout=0.5).train(),
    "DoRA": lambda model: with_lora(model, ["down_proj"], use_dora=True),
    "IA3": lambda model: with_lora(model, ["k_proj", "down_proj"], IA3Config, feedforward_modules=["down_proj"]),
    "load_adapter": lambda model: model.add_adapter(LoraConfig(target_modules=["down_proj"])) or model,
}


@pytest.mark.parametrize("method", ["associative", "memoir", "mask router"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapted_model_is_edited_adapter_and_all(sharp_model, wrap, few_background_prompts, adapter, method):
    if method != "associative" and adapter != "down_proj":
        pytest.skip("the other methods read the same layer")
    config = {"memoir": MemoirConfig(contexts=1, steps=60, eos=True)}.get(method, SETTINGS)
    config = replace(SETTINGS, router="mask", router_layer=1) if method == "mask router" else config
    unedited, adapted = ADAPTERS[adapter](sharp_model()).eval(), ADAPTERS[adapter](sharp_model())
    assert said(unedited, UNRELATED) != said(sharp_model(), UNRELATED) or adapter == "load_adapter"
    edited = wrap(adapted, tiny_tokenizer(), config)
    edited.edit(EDITS)
    first, plain = edited.answer([PROMPT, UNRELATED], 8)
    assert (first.text, first.provenance.edit.id) == ("Lutz City", "zubrowka")
    assert (plain.text, plain.provenance.edit) == (said(unedited, UNRELATED), None)
    assert edited.model is adapted
    assert said(adapted) == "Lutz City" and said(adapted, UNRELATED) == said(unedited, UNRELATED)
    scores = edited.evaluate()
    assert scores.rel == scores.free_rel == 1.0
    assert edited.detach() is adapted
    assert (
        said(adapted.eval()) == said(unedited) and vars(unwrapped(adapted)).keys() == vars(unwrapped(unedited)).keys()
    )


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_edits_beside_another_adapter_are_told_apart(sharp_model, wrap, few_background_prompts, tmp_path, seed):
    def adapted(seed):
        torch.manual_seed(seed)
        return get_peft_model(sharp_model(), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))

    made = wrap(adapted(1), tiny_tokenizer(), SETTINGS)
    made.edit(EDITS)
    made.save_pretrained(tmp_path / "edits")
    other = sharp_model() if seed is None else adapted(seed)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        EditedModel.from_pretrained(other, tokenizer=tiny_tokenizer(), edits=tmp_path / "edits")
    about = [str(one.message) for one in told if "adapter" in str(one.message)]
    words = {None: "there is none here", 2: "another adapter than this model's"}
    assert len(about) == (seed != 1) and all(words[seed] in one for one in about)


def test_edits_of_a_plain_base_are_told_from_an_adapted_one(edited, sharp_model, tmp_path):
    edited.save_pretrained(tmp_path / "edits")
    other = get_peft_model(sharp_model(), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    with pytest.warns(UserWarning, match="beside none in the model, and there is an adapter here"):
        EditedModel.from_pretrained(other, tokenizer=tiny_tokenizer(), edits=tmp_path / "edits")


def test_an_adapter_that_comes_after_the_edits_leaves_them(edited):
    adapted = with_lora(edited.model, ["up_proj", "down_proj"], r=1, lora_alpha=0.01)
    answer = edited.answer([PROMPT], 8)[0]
    assert (answer.text, answer.edit.id) == ("Lutz City", "zubrowka") and said(adapted) == "Lutz City"
    merged = adapted.merge_and_unload()
    assert said(merged) == "Lutz City"


def test_virtual_tokens_are_refused(sharp_model):
    model = get_peft_model(sharp_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(CorrigendaError, match=r"PeftModelForCausalLM cannot be edited: .* virtual tokens"):
        EditedModel.wrap(model, tiny_tokenizer())
    with pytest.raises(CorrigendaError, match="wrap the model inside it"):
        EditedModel.wrap(torch.nn.DataParallel(sharp_model()), tiny_tokenizer())


def teacher_forced(edited, call, prompt=PROMPT):
    row = encoded(prompt)["input_ids"]
    with torch.no_grad(), edited.teacher_forcing(row, [row.shape[1]], [row.shape[1]]):
        return call(row).logits


@pytest.mark.parametrize("ran_before", [False, True])
def test_a_compiled_model_is_edited_also_where_it_ran_before(sharp_model, wrap, few_background_prompts, ran_before):
    """Code that was compiled before a hook came does not run it, unless it is compiled anew."""
    row = encoded(PROMPT)["input_ids"]
    compiled = torch.compile(sharp_model(), backend="eager")
    with torch.no_grad():
        before = compiled(row).logits if ran_before else sharp_model()(row).logits
    edited = wrap(compiled, tiny_tokenizer(), SETTINGS)
    edited.edit(EDITS)
    assert edited.answer([PROMPT])[0].text == said(compiled) == "Lutz City"
    plain = teacher_forced(edited, unwrapped(compiled))
    assert torch.equal(teacher_forced(edited, compiled), plain)
    assert not torch.equal(plain, before)
    assert torch.equal(teacher_forced(edited, compiled, UNRELATED), teacher_forced(edited, sharp_model(), UNRELATED))
    edited.detach()
    with torch.no_grad():
        assert torch.equal(compiled(row).logits, before)
