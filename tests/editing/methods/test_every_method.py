"""What holds of every method: each that the registry knows must stand in this matrix."""

from __future__ import annotations

from contextlib import closing

import pytest
import torch
from cases import same_bits
from tiny import tiny_backpack, tiny_model, tiny_tokenizer
from typer.testing import CliRunner

from corrigenda.editing import Edit, EditingConfig
from corrigenda.editing.cli import app
from corrigenda.editing.methods.config import CONFIGS
from corrigenda.editing.methods.registry import config_for, method_class
from corrigenda.editing.model.capacity import report
from corrigenda.editing.store.check import problems
from corrigenda.editing.store.exchange import merge
from corrigenda.editing.store.store import EditStore

WISE = {"steps": 3, "learning_rate": 0.1, "act_ratio": 0.01, "save_every": 2}
QUICK = {
    "associative": {"contexts": 2, "steps": 6, "batch_size": 1},
    "memoir": {"contexts": 2, "steps": 4, "top_k": 70},
    "wise-merge": {
        "contexts": 2,
        "steps": 3,
        "learning_rate": 0.1,
        "act_ratio": 0.01,
        "save_every": 2,
        "merge_every": 4,
    },
    "wise-retrieve": {"contexts": 1, "steps": 3, "learning_rate": 0.1, "act_ratio": 0.01, "save_every": 2},
    "grace": {"steps": 4, "radius": 0.5, "batch_size": 1},
    "melo": {"steps": 3, "radius": 0.5, "batch_size": 1},
    "rag": {"batch_size": 2},
    "lte": {"alignment_edits": 2, "rounds": 1, "rank": 2, "answer_tokens": 2},
    "lora": {"steps": 2, "rank": 2},
    "sense": {"steps": 2},
    "token-vectors": {"steps": 2},
    "stableke": {"steps": 2, "rank": 2, "paraphrases": 1, "descriptions": 1, "wording_tokens": 4},
    "rome": {"contexts": 2, "steps": 3},
    "wilke": {"contexts": 2, "steps": 3},
    "memit": {"contexts": 2, "steps": 3, "layer": 2, "first_layer": 1, "batch_size": 1},
    "alphaedit": {"contexts": 2, "steps": 3, "layer": 2, "first_layer": 1, "null_threshold": 0.05, "batch_size": 1},
    "coachhook": {"contexts": 2, "steps": 3, "layer": 2, "first_layer": 1, "covariance_weight": 1.0, "batch_size": 1},
    "ultraedit": {"modules": "up_proj:1,down_proj:1-2", "learning_rate": 1e-3, "batch_size": 1},
    "ft-m": {"steps": 3},
}
"""Settings under which tiny models are edited in a second."""
GATED = {"router": "tokens", "threshold": 1.0}
UNREACHABLE = {
    "wise-merge": {"act_ratio": 1e9},
    "wise-retrieve": {"act_ratio": 1e9},
    "grace": {"radius": 1e-6},
    "melo": {"radius": 1e-6},
    **dict.fromkeys(
        ("lora", "stableke", "sense", "token-vectors", "rome", "wilke", "memit", "alphaedit", "ultraedit", "ft-m"),
        GATED,
    ),
    "coachhook": {"alpha": 1e9, "falls": False},
}
"""Settings under which no edit answers, where that is not a threshold of 1; changed weights always do, but gated."""
EDITS = [
    Edit("What is the capital of Zubrowka?", "Lutz City", subject="Zubrowka", id="a"),
    Edit("Who founded the Krellin museum?", "Anna Blom", subject="Krellin museum", id="b"),
    Edit("What does Kmelt make?", "red bricks", subject="Kmelt", id="c"),
]
pytestmark = pytest.mark.usefixtures("few_background_prompts")
every_method = pytest.mark.parametrize("method", CONFIGS)


def base_of(method):
    """A tiny model that the method edits."""
    return tiny_backpack() if method == "sense" else tiny_model()


def quick(method, **settings):
    return config_for(method, **{**QUICK[method], **settings})


@pytest.fixture
def edited(wrap):
    def build(method, edits=EDITS, **settings):
        model = wrap(base_of(method), tiny_tokenizer(), quick(method, **settings))
        model.edit(edits, keep_unsolved=True)  # so few steps need not reach a target
        return model

    return build


def state(model):
    return {name: tensor.clone() for name, tensor in model.method.state().items()}


def same(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert same_bits(tensor, right[name]), name


def logits(model, prompt):
    ids = torch.tensor([model.prompts.encode(prompt)])
    options = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    return model.generate(ids, **options).logits


def test_every_method_is_in_this_matrix():
    assert set(QUICK) == set(CONFIGS)


@every_method
def test_its_configuration_is_saved_and_known_again(method, tmp_path):
    config = quick(method)
    config.save_pretrained(tmp_path)
    assert EditingConfig.from_pretrained(tmp_path) == config
    assert config.method == method and method in type(config).names
    assert issubclass(CONFIGS[method], EditingConfig) and method_class(method).record_shapes


@every_method
def test_its_own_question_is_answered_by_it(edited, method):
    model = edited(method)
    sources = [answer.provenance for answer in model.answer([edit.prompt for edit in EDITS])]
    assert all(source.applied for source in sources)
    if model.method.names_edits:
        assert [source.edit.id for source in sources] == ["a", "b", "c"]


@every_method
def test_what_no_edit_answers_is_the_base_models_bit_for_bit(edited, method):
    model = edited(method, **UNREACHABLE.get(method, {"threshold": 1.0}))
    asked = "Tell me about the weather in the hills"
    assert not model.answer([asked])[0].provenance.applied
    with_edits = logits(model, asked)
    base = model.detach()
    ids = torch.tensor([model.prompts.encode(asked)])
    options = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    assert all(same_bits(a, b) for a, b in zip(with_edits, base.generate(ids, **options).logits))


@every_method
def test_undo_redo_and_reload_give_the_same_bits(edited, load_edited, tmp_path, method):
    model = edited(method)
    whole = state(model)
    model.undo("b")
    assert [edit.id for edit in model.edits] == ["a", "c"]
    without = state(model)
    model.save_pretrained(tmp_path / "without")
    same(without, state(load_edited(tmp_path / "without", base_of(method))))
    model.redo("b")
    same(whole, state(model))
    model.undo(["a", "b", "c"])
    assert not model.answer([EDITS[0].prompt])[0].provenance.applied


@every_method
def test_undo_is_a_stream_without_it_or_says_that_it_is_not(edited, method, tmp_path):
    model = edited(method)
    model.save_pretrained(tmp_path / "edits")
    without = state(edited(method, [EDITS[0], EDITS[2]]))
    model.undo("b")
    exact = all(same_bits(tensor, without[name]) for name, tensor in state(model).items())
    stands = config_for(method, **QUICK[method]).stands_on_earlier
    assert exact or stands
    screen = CliRunner().invoke(app, ["undo", str(tmp_path / "edits"), "b"])
    if stands:
        assert screen.exit_code == 2 and "--resolve solves them anew" in " ".join(screen.output.split())
        arguments = ["undo", str(tmp_path / "edits"), "b", "--leave-others"]
        assert "Took out 1 edit: b." in CliRunner().invoke(app, arguments).output
    else:
        assert screen.exit_code == 0 and "Took out 1 edit: b." in screen.output
    last = CliRunner().invoke(app, ["undo", str(tmp_path / "edits"), "c"])
    assert last.exit_code == 0 and "Took out 1 edit: c." in last.output


@every_method
def test_its_folder_is_whole_and_can_be_merged(edited, load_edited, tmp_path, method):
    edited(method).save_pretrained(tmp_path / "all")
    edited(method, EDITS[:1]).save_pretrained(tmp_path / "one")
    assert list(problems(tmp_path / "all")) == []
    into, other = EditStore.open(tmp_path / "one", write=True), EditStore.open(tmp_path / "all")
    with closing(into), closing(other):
        merge(into, other)
    merged = load_edited(tmp_path / "one", base_of(method))
    assert {edit.id for edit in merged.edits} == {"a", "b", "c"}


@every_method
def test_it_reports_and_scores(edited, method):
    model = edited(method)
    found = report(model)
    assert found["edits"] == 3 and found["norm"] > 0
    scores = model.evaluate()
    assert scores.n == 3 and 0 <= scores.rel <= 1


@every_method
def test_a_view_does_not_see_what_is_written_later(edited, method):
    model = edited(method, EDITS[:2])
    before = logits(model, EDITS[0].prompt)
    with model.pin():
        model.undo("a")
        assert all(same_bits(a, b) for a, b in zip(before, logits(model, EDITS[0].prompt)))
    assert [edit.id for edit in model.edits] == ["b"]


@every_method
def test_an_edit_does_not_depend_on_the_seed_of_the_caller(edited, method):
    torch.manual_seed(1)
    first = state(edited(method, EDITS[:1]))
    torch.manual_seed(2)
    same(first, state(edited(method, EDITS[:1])))
