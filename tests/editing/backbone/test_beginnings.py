"""What many rows begin with passes the frozen layers once: the features are those of whole rows."""

import pytest
import torch
from families import ids, small
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import Edit, EditedModel, WiseConfig
from corrigenda.editing.backbone import frozen as frozen_module
from corrigenda.editing.backbone.decoder import Decoder
from corrigenda.editing.backbone.frozen import Beginnings, common_beginning, frozen_features
from corrigenda.editing.methods.registry import config_for

LAYER = 1


@pytest.mark.parametrize("budget", [1, 24, 10_000])
@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen3"])
def test_features_after_a_beginning_are_those_of_the_whole_row(name, budget):
    decoder = Decoder(small(name))
    sequences = [ids(5, seed=1), ids(9, seed=2), ids(1, seed=3)]
    rows = [
        sequences[0] + ids(4, seed=4),
        sequences[1] + ids(1, seed=5),
        sequences[1][:6] + ids(7, seed=6),  # a part of one
        sequences[0],  # nothing after it
        sequences[2] + ids(11, seed=7),
        ids(8, seed=8),  # none
    ]
    beginnings = Beginnings(decoder, LAYER, sequences)
    shared = [beginnings.of(row)[1] for row in rows]
    assert [shared[i] for i in (0, 1, 3, 5)] == [5, 9, 4, 0] and shared[2] >= 6 and shared[4] >= 1
    found = frozen_features(decoder, LAYER, rows, budget, beginnings)
    for row, features, whole in zip(rows, found, frozen_features(decoder, LAYER, rows, budget)):
        assert features.inputs.shape == (len(row), whole.inputs.shape[1])
        torch.testing.assert_close(features.inputs, whole.inputs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(features.hidden, whole.hidden, rtol=1e-4, atol=1e-5)


def test_what_two_rows_begin_with():
    assert common_beginning([1, 2, 3], [1, 2, 4]) == [1, 2]
    assert common_beginning([1, 2], [1, 2, 4]) == [1, 2]
    assert common_beginning([1, 2, 3], []) == []
    assert common_beginning((5,), (6,)) == ()


def passed_tokens(monkeypatch):
    """Of every pass of the frozen layers from here on: how many tokens each of its rows has."""
    passes, inner = [], frozen_module._pass

    def counted(decoder, layer, rows, starts, cache):
        passes.append([len(row) for row in rows])
        return inner(decoder, layer, rows, starts, cache)

    monkeypatch.setattr(frozen_module, "_pass", counted)
    return passes


@pytest.mark.parametrize("method", ["associative", "memoir", "wise-merge"])
def test_contexts_and_the_opening_are_passed_once_for_all_edits(method, monkeypatch, few_background_prompts):
    template = "Question: {prompt}\nAnswer:"
    config = config_for(method, contexts=3, steps=1)
    edited = EditedModel.wrap(tiny_model(), tiny_tokenizer(), config, template=template)
    contexts = edited.method.prepare()
    edit = Edit("Who runs the mill?", "Ada Byron")
    rows = [row.tokens for row in edited.method.rows(edit, contexts)]
    passes = passed_tokens(monkeypatch)
    edited.method.features(rows)
    (lengths,) = passes
    opening = len(edited.prompts.encode("Question:"))
    for row, length, context in zip(rows, sorted(lengths), contexts):
        assert length <= len(row) - opening - len(edited.prompts.encode(context)) + 1


def test_irrelevant_prompts_that_the_ground_holds_are_not_passed_again(monkeypatch, few_background_prompts):
    config = WiseConfig(contexts=2, steps=1, threshold_from="background", irrelevant_prompts=1)
    edited = EditedModel.wrap(tiny_model(), tiny_tokenizer(), config)
    method = edited.method
    method.prepare()
    count = len(method._irrelevant)
    passes = passed_tokens(monkeypatch)
    known = method._known_inputs([count - 1, 0])
    again = frozen_features(method.decoder, method.layer, [method._irrelevant[count - 1], method._irrelevant[0]])
    for inputs, features in zip(known, again, strict=True):
        torch.testing.assert_close(inputs, features.inputs, rtol=1e-4, atol=1e-5)
    assert method._known_inputs([count]) == []  # the ground has fewer prompts than are asked for
    edited.edit([Edit("Who keeps the inn?", "Otto Brandt")])  # before the first, the base is checked
    passes.clear()
    edited.edit([Edit("Who runs the mill?", "Ada Byron")])
    assert sum(map(len, passes)) == len(edited.method.prepare())
