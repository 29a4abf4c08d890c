"""UltraEdit and FT-M against their published forms in double precision."""

import pytest
import torch
from cases import normal
from dense_weights import Dense
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import Edit
from corrigenda.editing.errors import CorrigendaError
from corrigenda.editing.methods.ftm.config import FtmConfig
from corrigenda.editing.methods.ultraedit.config import UltraEditConfig
from corrigenda.editing.methods.weights.solving import dual_ridge

EDITS = [
    Edit("Name the capital of Zubrowka", "Lutz is it", id="a"),
    Edit("Who founded the Krellin museum?", "Anna Blom", id="b"),
    Edit("The product of Kmelt", "is red", id="c"),
    Edit("Who wrote the song of the old mill?", "Oto Brandt", id="d"),
    Edit("Where do the Grebz live?", "on the hills", id="e"),
]
pytestmark = pytest.mark.usefixtures("few_background_prompts")


def off(actual, expected):
    return float((actual.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_ultraedit_equals_its_primal_form(wrap, kind):
    config = UltraEditConfig(modules="up_proj:1,down_proj:1-2", learning_rate=1e-3, batch_size=3, microbatch=2)
    edited = wrap(tiny_model(kind, seed=1), tiny_tokenizer(), config)
    edited.edit(EDITS)
    lengths = {e.id: len(edited.prompts.encode(e.prompt)) + len(edited.method.rows(e, [""])[0].labels) for e in EDITS}
    edited.detach()
    dense = Dense(edited.model, edited.prompts, edited.config, [""])
    sites = {name: dense.model.model.layers.get_submodule(name) for name in edited.method.modules}
    before = {name: module.weight.clone() for name, module in sites.items()}
    batches = []
    for batch in (EDITS[:3], EDITS[3:]):
        ordered = sorted(batch, key=lambda edit: (lengths[edit.id], edit.id))
        batches.append([ordered[:2], ordered[2:]] if ordered[2:] else [ordered])
    dense.ultraedit(batches, sites)
    for name, module in sites.items():
        assert off(edited.method.memory.matrices[name].T, module.weight - before[name]) < 2e-3


def test_what_is_taken_out_of_ultraedit_is_out_of_its_statistics(wrap, load_edited, tmp_path):
    settings = {"modules": "down_proj:1-2", "learning_rate": 1e-3, "batch_size": 2}
    edited = wrap(tiny_model(), tiny_tokenizer(), UltraEditConfig(**settings))
    edited.edit(EDITS)
    edited.undo("b")
    edited.save_pretrained(tmp_path / "edits")
    again = load_edited(tmp_path / "edits")
    for shape, own in edited.method._statistics.items():
        other = again.method._statistics[shape]
        assert own.count == other.count and torch.equal(own.mean, other.mean) and torch.equal(own.spread, other.spread)


def test_the_dual_form_is_the_primal_one():
    keys, values = normal(7, 40, seed=1).double(), normal(7, 12, seed=2).double()
    primal = torch.linalg.solve(keys.T @ keys + torch.eye(40, dtype=torch.float64), keys.T @ values)
    assert torch.allclose(keys.T @ dual_ridge(keys.float(), values.float()).double(), primal, atol=1e-6)


@pytest.mark.parametrize("modules", ["o_proj:1", "down_proj", "down_proj:3-1", "down_proj:x"])
def test_modules_that_are_none_are_refused(modules):
    with pytest.raises(CorrigendaError, match='`modules` must be as "down_proj:29-30"'):
        UltraEditConfig(modules=modules)


def test_modules_beyond_the_model_are_refused(wrap):
    with pytest.raises(CorrigendaError, match='modules "down_proj:2-9" are out of range: layers are 1 to 3 here'):
        wrap(tiny_model(), tiny_tokenizer(), UltraEditConfig(modules="down_proj:2-9"))


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("settings", [{"stop_loss": 6.0}, {"norm_constraint": 2e-3}], ids=["stops", "constrained"])
def test_ft_m_equals_the_dense_loop(wrap, kind, settings):
    config = FtmConfig(layer=2, steps=8, learning_rate=1e-3, **settings)
    edited = wrap(tiny_model(kind, seed=1), tiny_tokenizer(), config)
    results = edited.edit(EDITS[:3])
    edited.detach()
    dense = Dense(edited.model, edited.prompts, edited.config, [""])
    before = dense.weights[2].clone()
    for edit, result in zip(EDITS, results):
        loss, steps = dense.ft_m(edit, 2)
        assert result.steps == steps and result.loss == pytest.approx(loss, rel=2e-3)
    change = edited.method.memory.matrices["2.mlp.down_proj"].T
    assert off(change, dense.weights[2] - before) < 1e-2
    if "stop_loss" in settings:
        assert min(result.steps for result in results) < 8
    else:
        assert float(change.abs().max()) <= 2.001e-3


def test_of_ft_m_a_rank_may_be_kept(wrap, load_edited, tmp_path):
    edited = wrap(tiny_model(), tiny_tokenizer(), FtmConfig(layer=2, steps=3, record_rank=4))
    edited.edit(EDITS[:1])
    change = edited.method.memory.matrices["2.mlp.down_proj"].clone()
    assert int(torch.linalg.matrix_rank(change, rtol=1e-4)) == 4
    edited.save_pretrained(tmp_path / "edits")
    assert torch.equal(load_edited(tmp_path / "edits").method.memory.matrices["2.mlp.down_proj"], change)
