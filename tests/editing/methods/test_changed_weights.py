"""What holds of all methods that change weights: streams that go on elsewhere, subjects, changes without bounds."""

import pytest
import torch
from cases import same_bits
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import Edit, EditedModel
from corrigenda.editing.errors import CorrigendaError
from corrigenda.editing.methods.registry import config_for

EDITS = [
    Edit("What is the capital of Zubrowka?", "Lutz City", subject="Zubrowka", id="a"),
    Edit("Who founded the Krellin museum?", "Anna Blom", subject="Krellin museum", id="b"),
    Edit("What does Kmelt make?", "red bricks", subject="Kmelt", id="c"),
]
VALUES = {"contexts": 2, "steps": 4, "layer": 2}
SETTINGS = {
    "rome": VALUES,
    "wilke": VALUES,
    "memit": {**VALUES, "first_layer": 1, "batch_size": 1, "covariance_weight": 5.0},
    "alphaedit": {**VALUES, "first_layer": 1, "batch_size": 1, "null_threshold": 0.05},
    "coachhook": {**VALUES, "first_layer": 1, "batch_size": 1, "covariance_weight": 1.0},
    "ultraedit": {"modules": "down_proj:1-2", "learning_rate": 1e-3, "batch_size": 1},
    "ft-m": {"steps": 2},
}
pytestmark = pytest.mark.usefixtures("few_background_prompts")


@pytest.mark.parametrize("method", SETTINGS)
def test_a_stream_that_goes_on_in_another_process_has_the_bits_of_one_that_did_not_end(wrap, tmp_path, method):
    """Keys, statistics and thresholds that later edits are solved by come from the records, not from memory."""
    config = config_for(method, **SETTINGS[method])
    whole = wrap(tiny_model(), tiny_tokenizer(), config)
    whole.edit(EDITS)
    begun = wrap(tiny_model(), tiny_tokenizer(), config)
    begun.edit(EDITS[:2], store=tmp_path / "edits")
    begun.close()
    again = EditedModel.from_pretrained(tiny_model(), tmp_path / "edits", tokenizer=tiny_tokenizer())
    again.edit(EDITS, store=tmp_path / "edits", resume=True)
    assert [edit.id for edit in again.edits] == ["a", "b", "c"]
    for site, matrix in whole.method.memory.matrices.items():
        assert same_bits(again.method.memory.matrices[site], matrix)
    again.close()
    again.detach()


@pytest.mark.parametrize("method", [method for method in SETTINGS if method not in ("ultraedit", "ft-m")])
def test_where_a_subject_is_needed_the_record_without_one_is_named(wrap, method):
    edited = wrap(tiny_model(), tiny_tokenizer(), config_for(method, **SETTINGS[method]))
    with pytest.raises(CorrigendaError, match=r'^Edit "n" has no `subject`, which .* looks the fact up by: add it'):
        edited.edit(Edit("What is it?", "x", id="n"))
    assert not edited.edits and not any(matrix.any() for matrix in edited.method.memory.matrices.values())


def test_a_change_without_bounds_is_refused_and_nothing_is_written(wrap):
    edited = wrap(tiny_model(), tiny_tokenizer(), config_for("ft-m", steps=2, learning_rate=1e9))
    with pytest.raises(CorrigendaError, match='Edit "a" was not written'):
        edited.edit(EDITS[0])
    assert not edited.edits and not any(matrix.any() for matrix in edited.method.memory.matrices.values())


@pytest.mark.parametrize("subject", ["Zubrowka", "zubrowka", " Zubrowka "])
def test_a_subject_is_found_whatever_its_case_and_the_blanks_around_it(wrap, subject):
    edited = wrap(tiny_model(), tiny_tokenizer(), config_for("rome", **VALUES), template="Question: {prompt}\nAnswer:")
    edited.edit(Edit("What is the capital of Zubrowka?", "Lutz City", subject=subject))
    plain = wrap(tiny_model(), tiny_tokenizer(), config_for("rome", **VALUES), template="Question: {prompt}\nAnswer:")
    plain.edit(Edit("What is the capital of Zubrowka?", "Lutz City", subject="Zubrowka"))
    if subject.strip() == "Zubrowka":
        assert torch.equal(*(one.method.memory.matrices["2.mlp.down_proj"] for one in (edited, plain)))
    assert len(edited.edits) == 1
