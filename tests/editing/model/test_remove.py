"""Taking an edit out: it answers as the base model again, and the others as if it had never been written."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import AssociativeConfig, CorrigendaError, Edit, EditedModel, MemoirConfig

EDITS = [
    Edit("Who leads Vantrello Foods?", "Ines Okafor", id="a"),
    Edit("Which harbour does the ferry Kestrel use?", "Port Adlen", id="b"),
    Edit("What is the code name of Ostara OS 9?", "Heron", id="c"),
]


def written(edits, **settings):
    edited = EditedModel.wrap(
        tiny_model(), tiny_tokenizer(), AssociativeConfig(**{"router": "tokens", "contexts": 2, **settings})
    )
    edited.edit(edits)
    return edited


@pytest.mark.parametrize("router", ["tokens", "mask"])
def test_the_rest_is_what_a_stream_without_it_gives(router):
    # One edit at a time, so that both streams solve the same problems in the same shapes.
    edited = written(EDITS, batch_size=1, router=router, threshold=0.5)
    edited.remove("b")
    without = written([EDITS[0], EDITS[2]], batch_size=1, router=router, threshold=0.5)
    assert [edit.id for edit in edited.edits] == ["a", "c"]
    left, right = edited.method.state(), without.method.state()
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name
    prompts = [edit.prompt for edit in EDITS]
    assert [a.edit and a.edit.id for a in edited.answer(prompts)] == ["a", None, "c"]


def test_without_any_edit_the_logits_are_the_base_models():
    edited = written(EDITS)
    edited.remove([edit.id for edit in EDITS])
    ids = torch.tensor([edited.prompts.encode(EDITS[0].prompt)])
    options = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    after = edited.generate(ids, **options).logits
    before = edited.detach().generate(ids, **options).logits
    assert all(torch.equal(a, b) for a, b in zip(after, before))


def test_a_removed_edit_can_be_written_again():
    edited = written(EDITS)
    edited.remove("a")
    edited.edit(EDITS[0])
    assert edited.answer([EDITS[0].prompt])[0].edit == EDITS[0]


def test_an_unknown_id_is_named_and_nothing_is_removed():
    edited = written(EDITS)
    with pytest.raises(CorrigendaError, match='There is no edit with the id "z" to remove'):
        edited.remove(["a", "z"])
    assert len(edited.edits) == 3


def test_memoir_takes_an_edit_out_by_its_record():
    edited = EditedModel.wrap(tiny_model(), tiny_tokenizer(), MemoirConfig(steps=2, contexts=2))
    edited.edit(EDITS)
    edited.remove(["a", "c"])
    assert edited.edits == [EDITS[1]]
    edited.remove("b")
    assert not edited.method.memory.weight.any()


def test_wrong_arguments_are_refused_in_one_sentence(tmp_path):
    edited = written(EDITS)
    for wrong in (5, [5], ["a", None]):
        with pytest.raises(CorrigendaError, match=r"^undo takes ids of edits, which are text, not "):
            edited.undo(wrong)
        with pytest.raises(CorrigendaError, match=r"^remove takes ids of edits, which are text, not "):
            edited.remove(wrong)
    assert len(edited.edits) == 3
    for wrong, problem in (
        (EDITS[0].prompt, "The prompts must be a list of texts, not text."),
        (5, "The prompts must be a list of texts, not a number."),
        (["Who?", 5], "Prompt 2 must be text, not a number."),
    ):
        for asked in (edited.generate_text, edited.answer):
            with pytest.raises(CorrigendaError) as caught:
                asked(wrong)
            assert str(caught.value) == problem
    assert len(edited.generate_text((edit.prompt for edit in EDITS), 2)) == 3
    with pytest.raises(CorrigendaError, match="give it as `tokenizer`"):
        EditedModel.from_pretrained(tiny_model(), edits=tmp_path)


def test_a_detached_model_says_so(tmp_path):
    edited = written(EDITS)
    model = edited.detach()
    with pytest.raises(CorrigendaError, match=r"^The edits are detached from their model"):
        edited.detach()
    with pytest.raises(CorrigendaError, match=r"^The edits are detached from their model"):
        edited.edit(EDITS[0], store=tmp_path / "edits")
    again = EditedModel.wrap(model, tiny_tokenizer())
    with pytest.raises(CorrigendaError, match=r"^The edits are detached from their model"):
        edited.detach()
    assert again.detach() is model
