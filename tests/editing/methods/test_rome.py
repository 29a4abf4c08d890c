"""ROME against its formulas in double precision; what its options do, and its errors."""

import pytest
import torch
from dense_weights import Dense
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import Edit, EditedModel
from corrigenda.editing.errors import CorrigendaError
from corrigenda.editing.methods.rome.config import RomeConfig

EDITS = [
    Edit("Name the capital of Zubrowka", "Lutz", subject="Zubrowka"),
    Edit("Who founded the Krellin museum?", "Anna Blom", subject="Krellin museum"),
    Edit("The product of Kmelt", "is red", subject="Kmelt"),
]
pytestmark = pytest.mark.usefixtures("few_background_prompts")


def off(actual, expected):
    return float((actual.double() - expected).norm() / expected.norm())


def dense_twin(edited):
    return Dense(edited.model, edited.prompts, edited.config, edited.method._contexts)


def change(edited, layer):
    return edited.method.memory.matrices[f"{layer}.mlp.down_proj"].T


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize(
    "settings",
    [
        {"stop_loss": 5.8},
        {"keys": "mean", "covariance": "background"},
        {"contexts": 1, "kl_weight": 0.0, "clamp": 0.5, "value_decay": 0.5},
    ],
    ids=["published", "mean keys and covariance", "clamped"],
)
def test_equals_the_formulas(wrap, kind, settings):
    config = RomeConfig(**{"contexts": 4, "steps": 16, "layer": 1, "clamp": 20.0, **settings})
    edited = wrap(tiny_model(kind, seed=1), tiny_tokenizer(), config)
    results = edited.edit(EDITS)
    covariance = edited.method.covariance(1) if "covariance" in settings else None
    edited.detach()
    dense = dense_twin(edited)
    before = dense.weights[1].clone()
    for edit, result in zip(EDITS, results):
        loss, steps = dense.rome(edit, 1, covariance)
        assert result.steps == steps and result.loss == pytest.approx(loss, rel=1e-3, abs=1e-5)
    assert off(change(edited, 1), dense.weights[1] - before) < 2e-3
    if "stop_loss" in settings:
        assert min(result.steps for result in results) < 15


def test_edits_of_a_batch_find_their_values_as_they_would_alone(wrap):
    """Side by side, with different lengths and ends; only the weights they stand on are those before the batch."""
    settings = {"contexts": 3, "steps": 16, "layer": 1, "clamp": 20.0, "stop_loss": 5.8}
    together = wrap(tiny_model(), tiny_tokenizer(), RomeConfig(batch_size=3, **settings)).edit(EDITS)
    assert len({result.steps for result in together}) > 1
    for edit, result in zip(EDITS, together):
        (alone,) = wrap(tiny_model(), tiny_tokenizer(), RomeConfig(**settings)).edit(edit)
        assert alone.steps == result.steps and alone.loss == pytest.approx(result.loss, rel=1e-4)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (Edit("What is it?", "x", id="n"), 'Edit "n" has no `subject`, which ROME looks the fact up by'),
        (Edit("What is it?", "x", subject="Kmelt", id="n"), 'has the subject "Kmelt", which its prompt does not name'),
    ],
)
def test_without_a_subject_in_the_prompt_an_edit_is_refused_by_name(wrap, edit, sentence):
    edited = wrap(tiny_model(), tiny_tokenizer(), RomeConfig(contexts=1, steps=2, batch_size=2))
    with pytest.raises(CorrigendaError, match=sentence):
        edited.edit([EDITS[0], edit])
    assert not edited.edits and not change(edited, edited.config.layer).any()


def test_a_gated_change_leaves_other_requests_the_base_models(wrap):
    settings = {"contexts": 1, "steps": 3, "threshold": 0.9, "router": "tokens"}
    edited = wrap(tiny_model(), tiny_tokenizer(), RomeConfig(**settings))
    edited.edit(EDITS)
    own, other = edited.answer([EDITS[0].prompt, "How far is the moon?"])
    assert own.edit.prompt == EDITS[0].prompt and other.edit is None
    edited.detach()
    plain = EditedModel.wrap(edited.model, edited.tokenizer)
    assert plain.answer(["How far is the moon?"])[0].text == other.text
    plain.detach()


def test_changed_weights_answer_as_the_memory_does(sharp_model, wrap):
    """The same logits as with W0 + sum written into the model."""
    edited = wrap(sharp_model(), tiny_tokenizer(), RomeConfig(contexts=2, steps=6, layer=1))
    edited.edit(EDITS)
    ids = torch.tensor([edited.prompts.encode(EDITS[1].prompt)])
    options = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    found = torch.stack(edited.generate(ids, **options).logits)
    model = edited.detach()
    base = torch.stack(model.generate(ids, **options).logits)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight += change(edited, 1)
    expected = torch.stack(model.generate(ids, **options).logits)
    assert (found - expected).abs().max() < 1e-3 < (base - expected).abs().max()
