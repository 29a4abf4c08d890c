"""MEMIT and AlphaEdit against their formulas in double precision: several batches, several layers."""

import pytest
import torch
from cases import normal
from dense_weights import Dense
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import Edit
from corrigenda.editing.errors import CorrigendaError
from corrigenda.editing.methods.alphaedit.config import AlphaEditConfig
from corrigenda.editing.methods.memit.config import MemitConfig
from corrigenda.editing.methods.weights.solving import Cholesky, ridge_columns

EDITS = [
    Edit("Name the capital of Zubrowka", "Lutz", subject="Zubrowka", id="a"),
    Edit("Who founded the Krellin museum?", "Anna Blom", subject="Krellin museum", id="b"),
    Edit("The product of Kmelt", "is red", subject="Kmelt", id="c"),
]
LAYERS = [0, 1, 2]
SETTINGS = {"contexts": 3, "steps": 6, "first_layer": 0, "layer": 2, "clamp": 4.0, "value_decay": 0.01, "batch_size": 2}
pytestmark = pytest.mark.usefixtures("few_background_prompts")


def off(actual, expected):
    return float((actual.double() - expected).norm() / expected.norm())


def assert_equal_changes(edited, dense, before):
    for layer in LAYERS:
        found = edited.method.memory.matrices[f"{layer}.mlp.down_proj"].T
        assert off(found, dense.weights[layer] - before[layer]) < 5e-3


def written(wrap, kind, config):
    edited = wrap(tiny_model(kind, seed=1), tiny_tokenizer(), config)
    edited.edit(EDITS)
    covariances = {layer: edited.method.covariance(layer) for layer in LAYERS}
    edited.detach()
    dense = Dense(edited.model, edited.prompts, edited.config, edited.method._contexts)
    return edited, dense, [weight.clone() for weight in dense.weights], covariances


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_memit_equals_its_formulas(wrap, kind):
    edited, dense, before, covariances = written(wrap, kind, MemitConfig(covariance_weight=20.0, **SETTINGS))
    for batch in (EDITS[:2], EDITS[2:]):
        dense.memit(batch, LAYERS, covariances)
    assert_equal_changes(edited, dense, before)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_alphaedit_equals_its_formulas(wrap, kind):
    config = AlphaEditConfig(null_threshold=0.05, ridge=0.5, learning_rate=0.5, **SETTINGS)
    edited, dense, before, covariances = written(wrap, kind, config)
    sums = {layer: torch.zeros(160, 160, dtype=torch.float64) for layer in LAYERS}
    for batch in (EDITS[:2], EDITS[2:]):
        dense.alphaedit(batch, LAYERS, covariances, sums)
    assert_equal_changes(edited, dense, before)


def test_a_change_of_alphaedit_hardly_moves_what_other_keys_say(wrap):
    """On the keys that the second moment was taken of: by no direction more than the threshold allows."""
    config = AlphaEditConfig(null_threshold=0.05, ridge=0.1, learning_rate=0.5, **SETTINGS)
    edited, _, _, covariances = written(wrap, "llama", config)
    change = edited.method.memory.matrices["1.mlp.down_proj"].double()
    moved = float((change.T @ covariances[1] @ change).trace() / change.norm() ** 2)
    assert 0 < moved < 0.05 < float(covariances[1].diagonal().mean())


def test_one_that_is_taken_out_of_alphaedit_no_longer_holds_others_back(wrap):
    """The next batch is solved as beside a rebuild: its keys are among the records that are in."""
    config = AlphaEditConfig(null_threshold=0.05, ridge=0.5, learning_rate=0.5, **{**SETTINGS, "batch_size": 1})
    edited = wrap(tiny_model(), tiny_tokenizer(), config)
    edited.edit(EDITS[:2])
    assert [len(kept) for kept in edited.method._keys.values()] == [2, 2, 2]
    edited.undo("a")
    assert [len(kept) for kept in edited.method._keys.values()] == [1, 1, 1]


def test_the_cheap_forms_are_the_published_ones():
    covariance = normal(24, 24, seed=1).double()
    covariance = covariance @ covariance.T / 24 + 0.1 * torch.eye(24, dtype=torch.float64)
    keys, before = normal(24, 5, seed=2).double(), normal(24, 7, seed=3).double()
    factor = Cholesky(covariance)
    whole = torch.linalg.inv(covariance + before @ before.T + keys @ keys.T)
    assert torch.allclose(factor.solve_beside(keys, before), whole @ keys, atol=1e-10)
    left, _, _ = torch.linalg.svd(covariance)
    free = left[:, 10:]
    projector = free @ free.T
    published = torch.linalg.solve(
        projector @ keys @ keys.T + 0.3 * torch.eye(24, dtype=torch.float64), projector @ keys
    )
    assert torch.allclose(ridge_columns(free, keys, 0.3), published, atol=1e-10)


def test_a_threshold_below_every_direction_is_named(wrap):
    edited = wrap(tiny_model(), tiny_tokenizer(), AlphaEditConfig(null_threshold=1e-30, **SETTINGS))
    with pytest.raises(CorrigendaError, match="no direction that its keys use less than null_threshold=1e-30"):
        edited.edit(EDITS)
    assert not edited.edits
