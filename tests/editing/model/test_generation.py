"""Generation with edits: the same tokens however a prompt reaches the model, and the base model's bits elsewhere."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from cases import same_bits
from generating import (
    CONFIGS,
    EDITS,
    PROMPTS,
    UNROUTED,
    alone,
    alone_greedily,
    base_model,
    edited_model,
    expected_routes,
    generated,
    padded,
    tokenizer,
    unedited_model,
)

from corrigenda.editing import CorrigendaError, Edit, EditedModel

every_kind = pytest.mark.parametrize("kind", ["llama", "mistral"])
every_method = pytest.mark.parametrize("method", CONFIGS)
every_case = pytest.mark.parametrize(
    "kind, method", [*(("llama", method) for method in CONFIGS), ("mistral", "associative"), ("mistral", "memoir")]
)
# The base model's bits


@every_case
def test_unrouted_prompts_get_the_base_models_logits(kind, method):
    edited, base = edited_model(kind, method), unedited_model(kind)
    options = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    for prompts in (UNROUTED[:1], UNROUTED, PROMPTS):
        inputs = padded(prompts)
        ours, theirs = edited.generate(**inputs, **options), base.generate(**inputs, **options)
        routes = edited.context.routes[: len(prompts)]
        assert routes.tolist() == [expected_routes(method)[PROMPTS.index(prompt)] for prompt in prompts]
        assert len(ours.logits) > 1
        for step, (a, b) in enumerate(zip(ours.logits, theirs.logits)):
            assert same_bits(a[routes < 0], b[routes < 0])
            if step == 0:
                assert (a[routes >= 0] != b[routes >= 0]).any(1).all()


@every_case
def test_a_prompt_is_decided_once_whatever_else_a_call_passes(kind, method):
    """Guidance runs a second forward over the last prompt token alone, which is no prompt to decide by."""
    edited = edited_model(kind, method)
    for prompt, route in zip(PROMPTS, expected_routes(method)):
        found, _ = generated(edited, padded([prompt]), guidance_scale=1.01)
        assert found == [route]


@every_case
def test_a_plain_forward_is_the_base_models(kind, method):
    edited, base = edited_model(kind, method), unedited_model(kind)
    inputs = padded(PROMPTS)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert same_bits(edited.model(**inputs).logits, base(**inputs).logits)


@every_case
def test_the_models_own_generate_is_edited(kind, method):
    edited = edited_model(kind, method)
    inputs = padded(PROMPTS)
    expected = edited.generate(**inputs, max_new_tokens=10, do_sample=False)
    assert torch.equal(edited.model.generate(**inputs, max_new_tokens=10, do_sample=False), expected)


# The same answer however it is asked for


@every_case
def test_a_mixed_batch_answers_as_each_prompt_alone(kind, method):
    edited = edited_model(kind, method)
    routes, tokens = alone_greedily(kind, method)
    assert routes == expected_routes(method)
    assert generated(edited, padded(PROMPTS)) == (routes, tokens)
    assert generated(edited, padded(PROMPTS, extra=7)) == (routes, tokens)
    assert generated(edited, padded(PROMPTS), cache_implementation="static") == (routes, tokens)
    backwards = generated(edited, padded(PROMPTS[::-1]))
    assert (backwards[0][::-1], backwards[1][::-1]) == (routes, tokens)
    targets = [f" {edit.target}{tokenizer().eos_token}" for edit in (EDITS[0], EDITS[2], EDITS[1])]
    assert [tokenizer().decode(new) for new in tokens[::2]] == targets


@every_case
def test_beams(kind, method):
    edited = edited_model(kind, method)
    routes, tokens = alone(edited, num_beams=3)
    _, together = generated(edited, padded(PROMPTS), num_beams=3)
    assert together == tokens and routes == expected_routes(method)
    assert edited.context.routes[: 3 * len(PROMPTS)].tolist() == [route for route in routes for _ in range(3)]
    if method != "associative":  # every beam's fingerprint is that of its own prompt
        scores = edited.context.decision.score.view(len(PROMPTS), 3)
        assert torch.equal(scores, scores[:, :1].expand(-1, 3)) and (method == "wise" or scores[::2].min() > 0.95)
    assert generated(edited, padded(PROMPTS), num_beams=3, num_return_sequences=2)[1][::2] == tokens


@every_case
def test_each_step_reads_the_memory_as_one_forward_over_the_whole_text_does(kind, method):
    edited = edited_model(kind, method)
    options = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    for prompt, route in zip(PROMPTS, expected_routes(method)):
        inputs = padded([prompt])
        output = edited.generate(**inputs, **options)
        length = inputs["input_ids"].shape[1]
        ids = output.sequences[:, :-1]
        with torch.no_grad(), edited.teacher_forcing(ids, [length], [ids.shape[1]]) as routes:
            whole = edited.model(ids).logits[0, length - 1 :]
            assert routes() == [route]
        torch.testing.assert_close(torch.cat(output.logits), whole, rtol=1e-3, atol=1e-3)


@every_case
def test_sampling(kind, method):
    edited, base = edited_model(kind, method), unedited_model(kind)
    options = {"do_sample": True, "temperature": 1.5, "top_k": 0}
    for prompt, route in zip(PROMPTS[:3], expected_routes(method)):
        runs = []
        for inputs, more in (
            (padded([prompt]), {}),
            (padded([prompt], extra=3), {}),
            (padded([prompt]), {"cache_implementation": "static"}),
        ):
            torch.manual_seed(11)
            runs.append(generated(edited, inputs, **options, **more))
        assert runs[0][0] == [route]
        assert runs[0] == runs[1] == runs[2]
        torch.manual_seed(11)
        unedited = base.generate(**padded([prompt]), max_new_tokens=10, **options)
        new = unedited[0, padded([prompt])["input_ids"].shape[1] :].tolist()[: len(runs[0][1][0])]
        assert (new == runs[0][1][0]) == (route < 0)


@every_case
def test_several_samples_of_a_prompt_share_its_route(kind, method):
    edited = edited_model(kind, method)
    routes, tokens = alone_greedily(kind, method)
    options = {"do_sample": True, "top_k": 1, "num_return_sequences": 3}
    copies = generated(edited, padded(PROMPTS), **options)
    assert copies == ([route for route in routes for _ in range(3)], [new for new in tokens for _ in range(3)])


@every_case
@pytest.mark.parametrize("how", ["prompt lookup", "assistant"])
def test_assisted_generation(kind, method, how):
    edited = edited_model(kind, method)
    options = {"prompt_lookup_num_tokens": 3} if how == "prompt lookup" else {"assistant_model": unedited_model(kind)}
    assert alone(edited, **options) == alone_greedily(kind, method)


@every_kind
@pytest.mark.parametrize("chunk", [1, 3, 8, 64])
def test_chunked_prefill(kind, chunk):
    edited = edited_model(kind, "associative")
    expected = alone_greedily(kind, "associative")
    assert generated(edited, padded(PROMPTS), prefill_chunk_size=chunk) == expected
    assert alone(edited, prefill_chunk_size=chunk) == expected


@pytest.mark.parametrize("method", ["mask router", "memoir", "wise"])
def test_a_chunked_prefill_is_refused_where_features_decide(method):
    edited = edited_model("llama", method)
    with pytest.raises(CorrigendaError, match=r'^[^.]*prefill_chunk_size[^.]*router="tokens"\.$') as raised:
        generated(edited, padded(PROMPTS), prefill_chunk_size=3)
    assert "\n" not in str(raised.value)
    assert generated(edited, padded(PROMPTS)) == alone_greedily("llama", method)  # and nothing of it is left behind


def test_a_conversation_that_goes_on_from_its_cache():
    """The first turn's keys and values are reused: the route is the whole text's."""
    edited = edited_model("llama", "associative")
    first = padded([UNROUTED[0]])
    output = edited.generate(**first, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    ids = torch.cat([output.sequences, padded([" " + EDITS[2].prompt])["input_ids"]], 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert generated(edited, inputs, past_key_values=output.past_key_values) == generated(edited, inputs)
    assert edited.context.routes[0] == 2


def test_padding_is_inferred_as_transformers_does():
    edited = edited_model("llama", "associative")
    inputs = padded(PROMPTS)
    assert generated(edited, {"input_ids": inputs["input_ids"]}) == generated(edited, inputs)
    assert torch.equal(
        edited.generate(inputs["input_ids"], max_new_tokens=4, do_sample=False),
        edited.generate(**inputs, max_new_tokens=4, do_sample=False),
    )
    with pytest.raises(CorrigendaError, match=r"input_ids"):
        edited.generate(max_new_tokens=3)


def padded_right(prompts):
    """The same prompts with their padding after them."""
    left = padded(prompts)
    count = left["attention_mask"].sum(1)
    return {name: torch.stack([row.roll(int(n)) for row, n in zip(values, count)]) for name, values in left.items()}


@every_case
def test_prompts_padded_on_the_right_are_answered_as_those_alone(kind, method):
    """What follows a row is predicted at its last column, which is padding there: it came without the edit."""
    edited = edited_model(kind, method)
    inputs = padded_right(PROMPTS)
    assert bool((inputs["attention_mask"][:, -1] == 0).any()) and bool(inputs["attention_mask"][:, 0].all())
    assert generated(edited, inputs) == alone_greedily(kind, method)
    assert generated(edited, {"input_ids": inputs["input_ids"]}) == alone_greedily(kind, method)
    assert generated(edited, inputs, num_beams=2, num_return_sequences=2)[1][::2] == alone(edited, num_beams=2)[1]
    for model in (edited, edited.model):
        output = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert torch.equal(output[:, :-3], inputs["input_ids"])


def test_what_stands_beside_prompts_must_be_padded_as_they_are_read():
    edited = edited_model("llama", "associative")
    inputs = padded_right(PROMPTS)
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with pytest.raises(CorrigendaError, match=r"^Prompts padded on the right .*`position_ids`.*padding_side"):
        edited.generate(**inputs, position_ids=positions, max_new_tokens=3)
    with pytest.raises(CorrigendaError, match=r"^Prompts are padded on the right .*padding_side"):
        edited.generate(
            **padded(PROMPTS),
            guidance_scale=1.5,
            negative_prompt_ids=inputs["input_ids"],
            negative_prompt_attention_mask=inputs["attention_mask"],
            max_new_tokens=3,
        )


@every_method
@pytest.mark.parametrize("shape", [(0, 5), (1, 0), (0, 0), (4,)])
def test_a_call_without_a_prompt_is_refused_in_a_sentence(method, shape):
    edited = edited_model("llama", method)
    for model in (edited, edited.model):
        with pytest.raises(CorrigendaError, match=r"^generate needs prompts of at least one token[^.]*\.$"):
            model.generate(torch.zeros(shape, dtype=torch.int64), max_new_tokens=3)
    with pytest.raises(CorrigendaError, match=r"^The attention mask[^.]*\[1, 3\], not \[1, 2\]\.$"):
        edited.generate(torch.ones(1, 3, dtype=torch.int64), attention_mask=torch.ones(1, 2), max_new_tokens=3)
    for prompts in ([""], [PROMPTS[0], ""]):
        with pytest.raises(CorrigendaError, match=rf"^Prompt {len(prompts)} has no tokens[^.]*\.$"):
            edited.answer(prompts)
    assert generated(edited, padded(PROMPTS)) == alone_greedily("llama", method)


# One decision a sequence, for this call alone


@every_method
def test_calls_do_not_leak_into_each_other(method):
    edited, base = edited_model("llama", method), unedited_model("llama")
    expected = alone_greedily("llama", method)
    inputs = padded(UNROUTED)
    for _ in range(2):
        generated(edited, padded(PROMPTS))
        with torch.no_grad():
            assert same_bits(edited.model(**inputs).logits, base(**inputs).logits)
    with pytest.raises(ValueError):
        edited.generate(**inputs, no_such_option=1)
    with pytest.raises(RuntimeError, match="stopped"):
        edited.generate(**padded(PROMPTS), logits_processor=[stop_generation], max_new_tokens=3)
    with torch.no_grad():
        assert same_bits(edited.model(**padded(PROMPTS)).logits, base(**padded(PROMPTS)).logits)
    assert alone(edited) == expected


def stop_generation(_ids, _scores):
    raise RuntimeError("stopped")


@pytest.mark.parametrize("method", [method for method in CONFIGS if method != "wise"])
def test_an_edit_between_two_calls_is_seen(method, wrap):
    edited = wrap(base_model("llama"), tokenizer(), replace(CONFIGS[method], steps=3))
    assert generated(edited, padded(PROMPTS))[0] == [-1] * 6
    edited.edit(EDITS[0], keep_unsolved=True)
    assert generated(edited, padded(PROMPTS))[0] == [0, -1, -1, -1, -1, -1]
    many = [Edit(f"Town {n} of Ostania lies by", f"hill {n}") for n in range(70)]
    edited.edit([*many, EDITS[2]], keep_unsolved=True)  # the banks are enlarged
    routes, tokens = generated(edited, padded(PROMPTS))
    assert routes == [0, -1, 71, -1, -1, -1]
    assert (routes, tokens) == alone(edited)


@every_case
def test_detach_gives_the_model_back_as_it_was(kind, method):
    model = base_model(kind)
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    needed = [parameter.requires_grad for parameter in model.parameters()]
    modules = dict(model.named_modules())
    before = copy.deepcopy(model.state_dict())
    attributes = set(vars(model))

    def hooks():
        return [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in modules.values()]

    unhooked = hooks()
    edited = EditedModel.wrap(model, tokenizer(), CONFIGS[method])
    edited.edit(EDITS[0])
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(CorrigendaError, match=r"already"):
        EditedModel.wrap(model, tokenizer())
    assert edited.detach() is model
    assert dict(model.named_modules()) == modules  # by identity
    assert [parameter.requires_grad for parameter in model.parameters()] == needed
    assert hooks() == unhooked and set(vars(model)) == attributes
    assert all(same_bits(tensor, before[name]) for name, tensor in model.state_dict().items())
    inputs = padded(PROMPTS)
    assert torch.equal(
        model.generate(**inputs, max_new_tokens=4), unedited_model(kind).generate(**inputs, max_new_tokens=4)
    )
    EditedModel.wrap(model, tokenizer(), CONFIGS[method]).detach()
