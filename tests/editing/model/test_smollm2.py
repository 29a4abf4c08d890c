"""The promised architectures on real pretrained weights: LLaMA, the same weights as Mistral, half precision, chats."""

from __future__ import annotations

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from corrigenda.editing import AssociativeConfig, EditedModel
from corrigenda.editing.edits.demo_facts import demo_edits

pytestmark = [pytest.mark.model, pytest.mark.slow]

TEMPLATE = "Question: {prompt}\nAnswer:"
EDITS = demo_edits()[:60:20]


def answers_to_edits(edited):
    """Answers to the edits' own prompts, to one rephrasing of each, and to a question that no edit is about."""
    prompts = [edit.prompt for edit in EDITS] + [edit.rephrases[0] for edit in EDITS]
    return edited.answer([*prompts, "What is the capital of France?"], max_new_tokens=12)


def assert_edited(answers):
    """The prompts are answered by the target and nothing else; a rephrasing may run on after it."""
    targets = [edit.target for edit in EDITS]
    assert [answer.text for answer in answers[: len(EDITS)]] == targets
    assert [answer.text[: len(target)] for answer, target in zip(answers[len(EDITS) :], targets)] == targets
    assert answers[-1].edit is None


@pytest.fixture
def as_llama(smollm2):
    edited = EditedModel.wrap(*smollm2, template=TEMPLATE)
    edited.edit(EDITS)
    yield edited
    edited.detach()


def test_llama_answers_in_other_words_and_leaves_the_rest(as_llama):
    assert_edited(answers_to_edits(as_llama))


def test_mistral_with_the_same_weights_answers_the_same(smollm2, as_llama):
    llama, tokenizer = smollm2
    expected = [(answer.text, answer.edit) for answer in answers_to_edits(as_llama)]
    shared = MistralConfig().to_dict().keys() & llama.config.to_dict().keys() - {"model_type", "architectures"}
    fields = {name: getattr(llama.config, name) for name in shared}
    mistral = MistralForCausalLM(MistralConfig(**{**fields, "sliding_window": None})).eval()
    mistral.load_state_dict(llama.state_dict())
    edited = EditedModel.wrap(mistral, tokenizer, template=TEMPLATE)
    edited.edit(EDITS)
    assert [(answer.text, answer.edit) for answer in answers_to_edits(edited)] == expected


def test_half_precision_takes_an_edit(smollm2):
    model, tokenizer = smollm2
    half = type(model)(model.config).to(torch.bfloat16).eval()
    half.load_state_dict(model.state_dict())
    # One edit in one context: torch's CPU kernels take minutes over bf16 gradients of a whole batch.
    edited = EditedModel.wrap(half, tokenizer, AssociativeConfig(contexts=1), template=TEMPLATE)
    edited.edit(EDITS[0])
    asked, unrelated = edited.answer([EDITS[0].prompt, "What is the capital of France?"], max_new_tokens=12)
    assert (asked.text, asked.edit) == (EDITS[0].target, EDITS[0])
    assert unrelated.edit is None


def test_a_chat_is_routed_by_its_last_user_turn(smollm2):
    model, tokenizer = smollm2
    edited = EditedModel.wrap(model, tokenizer, AssociativeConfig(), chat_template=True)
    try:
        edited.edit(EDITS)
        edit = EDITS[0]
        assert edited.answer([edit.prompt, edit.rephrases[1]], max_new_tokens=12)[1].text == edit.target
        unrelated = [
            {"role": "user", "content": edit.prompt},
            {"role": "assistant", "content": edit.target},
            {"role": "user", "content": "Thank you. What is the capital of France?"},
        ]
        about_it = [
            {"role": "system", "content": "You are a terse assistant."},
            {"role": "user", "content": "What is the capital of France?"},
            {"role": "assistant", "content": "Paris"},
            {"role": "user", "content": edit.rephrases[0]},
        ]
        rows = [
            tokenizer(
                tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True),
                add_special_tokens=False,
            )["input_ids"]
            for turns in (unrelated, about_it)
        ]
        answers = edited.answer_ids(rows, [12, 12])
        assert answers[0].edit is None
        assert (answers[1].edit, answers[1].text) == (edit, edit.target)
    finally:
        edited.detach()
