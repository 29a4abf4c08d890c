"""WilKE against complete ROME edits at every layer in double precision."""

import copy

import pytest
import torch
from dense_weights import Dense
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import Edit
from corrigenda.editing.errors import CorrigendaError
from corrigenda.editing.methods.wilke.config import WilkeConfig

EDITS = [
    Edit("Name the capital of Zubrowka", "Lutz", subject="Zubrowka", id="a"),
    Edit("Who founded the Krellin museum?", "Anna Blom", subject="Krellin museum", id="b"),
    Edit("The product of Kmelt", "is red", subject="Kmelt", id="c"),
]
pytestmark = pytest.mark.usefixtures("few_background_prompts")


def shares(dense, edit, layers):
    """By which share of its norm a complete ROME edit changes each layer's weight."""
    found = []
    for layer in layers:
        tried = copy.deepcopy(dense)
        tried.rome(edit, layer)
        change = tried.weights[layer] - dense.weights[layer]
        found.append(float(change.norm() / dense.weights[layer].norm()))
    return found


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_each_edit_is_romes_at_the_layer_that_it_changes_least(wrap, kind):
    config = WilkeConfig(contexts=3, steps=8, layer=2, clamp=20.0)
    edited = wrap(tiny_model(kind, seed=1), tiny_tokenizer(), config)
    edited.edit(EDITS)
    found = list(edited.store.history.edits.values())
    edited.detach()
    dense = Dense(edited.model, edited.prompts, edited.config, edited.method._contexts)
    before = [weight.clone() for weight in dense.weights]
    chosen = []
    for edit, stored in zip(EDITS, found):
        of_layers = shares(dense, edit, range(3))
        chosen.append(of_layers.index(min(of_layers)))
        assert stored.body["numbers"]["share"] == pytest.approx(min(of_layers), rel=2e-3)
        dense.rome(edit, chosen[-1])
    for layer in range(3):
        change, expected = (
            edited.method.memory.matrices[f"{layer}.mlp.down_proj"].T,
            dense.weights[layer] - before[layer],
        )
        if layer in chosen:
            assert float((change.double() - expected).norm() / expected.norm()) < 5e-3
        else:
            assert not change.any()


def test_no_weight_is_touched_by_the_scan(wrap):
    edited = wrap(tiny_model(), tiny_tokenizer(), WilkeConfig(contexts=1, steps=3, layer=2, batch_size=3))
    before = [p.clone() for p in edited.model.parameters()]
    edited.edit(EDITS)
    assert all(torch.equal(a, b) for a, b in zip(before, edited.model.parameters()))
    assert list(edited.method.memory.matrices) == [f"{layer}.mlp.down_proj" for layer in range(3)]


def test_layers_the_wrong_way_round_are_refused(wrap):
    with pytest.raises(CorrigendaError, match="first_layer 3 is out of range: it is 0 to `layer`, 2"):
        wrap(tiny_model(), tiny_tokenizer(), WilkeConfig(first_layer=3, layer=2))
