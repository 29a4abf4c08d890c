"""A step as one launch: replayed from a recording, on a CPU, it gives what the eager step gives, bit for bit."""

import contextlib

import pytest
import torch
from replay import Replayed
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import Edit, EditedModel
from corrigenda.editing.backbone import repeated
from corrigenda.editing.methods.registry import config_for

EDITS = [
    Edit("The capital of Zubrowka is", "Lutz City"),
    Edit("Who founded the Krellin museum?", "Anna Blom"),
    Edit("The painter of Grebz was", "Oto"),
]
SETTINGS = {
    "associative": {"contexts": 2, "steps": 12, "relative_rate": 0.02, "retries": 1},
    "associative, from zero": {"contexts": 1, "steps": 12, "start": "zero", "gain": 1.0, "retries": 0},
    "memoir": {"contexts": 2, "steps": 9, "batch_size": 3},
    "memoir, active decay": {"contexts": 2, "steps": 9, "decay": "active", "weight_decay": 0.01, "scope": "causal"},
    "wise-merge": {"contexts": 2, "steps": 9, "learning_rate": 0.1, "decay": "all", "weight_decay": 0.01},
    "wise-retrieve": {"contexts": 2, "steps": 9, "replay": True, "merge_every": None, "reduction": "max"},
}
every_method = pytest.mark.parametrize("name", SETTINGS)


@pytest.fixture
def recorded(monkeypatch):
    """The steps that were recorded instead of being captured on a GPU."""
    found = []

    def record(self):
        found.append(Replayed(self._step))
        return found[-1]

    monkeypatch.setattr(repeated, "can_capture", lambda decoder, layer: True)
    monkeypatch.setattr(repeated, "_beside", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(repeated.Repeated, "_captured", record)
    return found


def solved(name):
    config = config_for(name.split(",")[0], **SETTINGS[name])
    edited = EditedModel.wrap(tiny_model(), tiny_tokenizer(), config)
    edited.edit(EDITS[:2])
    return edited.method.solve(EDITS)


@every_method
def test_a_replayed_step_is_the_eager_one(name, few_background_prompts, request):
    eager = solved(name)
    graphs = request.getfixturevalue("recorded")
    replayed = solved(name)
    assert graphs, "no edit took steps enough to be captured"
    for (written, record), (expected, of_eager) in zip(replayed, eager, strict=True):
        assert written == expected and written.steps > repeated._EAGER_CALLS + 1
        assert record.numbers == of_eager.numbers
        for key, tensor in of_eager.tensors.items():
            assert torch.equal(record.tensors[key], tensor), key


def test_a_step_that_waits_for_a_value_is_no_graph():
    x = torch.ones(3)
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        Replayed(lambda: x.sum().item())
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        Replayed(lambda: x[x > 0])


def test_a_recording_changes_nothing_and_a_replay_reads_what_is_there_then():
    x, y = torch.ones(3), torch.zeros(3)

    def step():
        y.add_(2 * x.view(3))

    replayed = Replayed(step)
    assert torch.equal(y, torch.zeros(3))
    x.fill_(5)
    replayed.replay()
    replayed.replay()
    assert torch.equal(y, torch.full((3,), 20.0))


def test_nothing_is_captured_without_a_gpu():
    edited = EditedModel.wrap(tiny_model(), tiny_tokenizer())
    assert not repeated.can_capture(edited.decoder, edited.config.layer)
    calls = []
    again = edited.method.repeated(lambda: calls.append(1))
    for _ in range(5):
        again()
    assert len(calls) == 5 and again._graph is None
