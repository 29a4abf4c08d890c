"""LTE: what the model is aligned by, and what an aligned model reads and answers."""

from __future__ import annotations

import copy
import json
from collections import Counter

import pytest
import torch
from cases import same_bits
from stores import refusal
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import Edit
from corrigenda.editing.edits.edit import Locality
from corrigenda.editing.methods.lte.alignment import alignment_set
from corrigenda.editing.methods.lte.config import LteConfig
from corrigenda.editing.methods.prompted import NOTICE, notice

TEMPLATE = "Question: {prompt}\nAnswer:"
SETTINGS = {"alignment_edits": 3, "rounds": 1, "rank": 2, "answer_tokens": 3, "learning_rate": 0.02}
EDITS = [
    Edit("What is the capital of Zubrowka?", "Lutz City", id="a"),
    Edit("Who founded the Krellin museum?", "Anna Blom", id="b"),
]
ELSEWHERE = "Where do the birds of the far north go in the long winter months of the year?"
pytestmark = pytest.mark.usefixtures("few_background_prompts")


def records(count=400):
    return [
        Edit(
            f"Who leads firm {n}?",
            f"Person {n}",
            subject=f"firm {n}",
            ground_truth=["Nobody"] if n % 2 else [],
            rephrases=[f"The head of firm {n} is"],
            localities=[Locality("What is two plus two?", "Four"), Locality(f"Where is firm {n}?", "There")],
            protected=[f"When was firm {n} founded?"] if n % 4 == 0 else [],
        )
        for n in range(count)
    ]


def test_every_question_stands_there_with_a_notice_and_without():
    edits = records()
    found = alignment_set(edits, lambda place: [place, *(p for p in range(400) if p != place)], seed=1)
    assert len(found) == 1600
    for place, edit in enumerate(edits):
        inside, inside_without, outside, outside_without = found[4 * place : 4 * place + 4]
        assert inside.question == inside_without.question in (edit.prompt, edit.rephrases[0])
        assert outside.question == outside_without.question and outside.answer == outside_without.answer
        assert not inside_without.facts and not outside_without.facts
        assert inside.facts == outside.facts and inside.facts[0] == f"{edit.prompt} {edit.target}"
        assert inside.answer == edit.target and inside_without.answer == (edit.ground_truth or (None,))[0]
        # About the same subject, where the record has such a question.
        asked = {f"Where is firm {place}?": "There", f"When was firm {place} founded?": None}
        assert outside.question in asked and outside.answer == asked[outside.question]
    reworded = sum(one.question.startswith("The head") for one in found[::4]) / 400
    assert 0.63 < reworded < 0.77
    sizes = Counter(len(one.facts) for one in found[::4])
    assert 170 < sizes[1] < 230 and 70 < sizes[2] < 130 and 70 < sizes[3] < 130


def test_distractors_are_of_other_subjects_and_the_most_alike_first():
    edits = records(3)
    twin = Edit("What does firm 0 make?", "bricks", subject="firm 0")
    for seed in range(40):
        (found, *_) = alignment_set([*edits, twin], lambda place: [0, 3, 2, 1], seed)
        if len(found.facts) == 3:
            assert found.facts[1:] == ("Who leads firm 2? Person 2", "Who leads firm 1? Person 1")
            return
    raise AssertionError("no example had two distractors")


def test_a_record_with_nothing_but_a_prompt_has_something_out_of_scope():
    one, two = Edit("Who?", "A"), Edit("What?", "B", ground_truth=["C"])
    found = alignment_set([one, two], lambda place: [], 0)
    assert (found[2].question, found[2].answer) == ("What?", "C")
    assert alignment_set([one], lambda place: [], 0)[2].question != "Who?"


def test_the_notice_is_ltes():
    assert notice(["X is Y"]) == NOTICE.format(facts="X is Y")
    assert "[Updated Information]:\n1. X is Y\n2. Z is W\n\n[Question]:\n" in notice(["X is Y", "Z is W"])


def test_rows_are_learnt_by_their_answers_alone(wrap, tmp_path):
    path = tmp_path / "align.jsonl"
    path.write_text("".join(json.dumps(edit.to_dict()) + "\n" for edit in records(4)), encoding="utf-8")
    config = LteConfig(alignment=str(path), **SETTINGS)
    edited = wrap(tiny_model(), tiny_tokenizer(), config, template=TEMPLATE)
    rows, decode = edited.method.alignment_rows(), edited.tokenizer.decode
    assert decode(rows[0].prompt).startswith("Please acknowledge the updated information")
    assert decode(rows[0].prompt).endswith("Question: The head of firm 0 is\nAnswer:") or decode(
        rows[0].prompt
    ).endswith("Question: Who leads firm 0?\nAnswer:")
    end = decode([edited.prompts.eos])
    assert decode(rows[0].labels) == f" Person 0{end}"
    assert all(row.labels[-1] == edited.prompts.eos for row in rows)
    # Answers that no record has are the model's own, to the same question as it stands.
    ids = torch.tensor([list(rows[1].prompt)])
    with edited._provider.aside():
        own = edited.model.generate(ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :]
    assert decode(rows[1].labels[:-1]).strip() == decode(own, skip_special_tokens=True).strip()


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_routed_prompt_is_answered_by_the_aligned_model_in_float64(wrap, kind):
    edited = wrap(tiny_model(kind), tiny_tokenizer(), LteConfig(**SETTINGS), template=TEMPLATE)
    edited.edit(EDITS, keep_unsolved=True)
    ids = edited.prompts.encode(edited.prompts.wrap(EDITS[0].prompt))
    options = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    found = edited.generate(torch.tensor([ids]), **options)
    assert found.sequences[0, : len(ids)].tolist() == ids
    (read,), decision = edited.read_as([ids])
    assert decision.route.tolist() == [0] and len(read) > len(ids)
    pairs = {site: [part.double() for part in pair] for site, pair in edited.method.memory.pairs.items()}
    assert all(float(up.abs().max()) > 0 for _, up in pairs.values())
    dense = copy.deepcopy(edited.detach()).double()
    for site, (down, up) in pairs.items():
        number, _, name = site.split(".")
        weight = getattr(dense.model.layers[int(number)].self_attn, name).weight
        with torch.no_grad():
            weight += up.T @ down
    with torch.no_grad():
        for step, logits in enumerate(found.logits):
            sequence = [*read, *found.sequences[0, len(ids) : len(ids) + step].tolist()]
            expected = dense(torch.tensor([sequence])).logits[0, -1]
            torch.testing.assert_close(logits[0].double(), expected, rtol=1e-3, atol=1e-3)


def test_without_an_edit_a_request_is_the_base_models_but_as_published(wrap):
    asked, logits = ELSEWHERE, {}
    for mode in ("serving", "published"):
        edited = wrap(tiny_model(), tiny_tokenizer(), LteConfig(mode=mode, **SETTINGS))
        ids = torch.tensor([edited.prompts.encode(asked)])
        options = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        with edited._provider.aside():
            base = edited.model.generate(ids, **options).logits[0]
        edited.edit(EDITS, keep_unsolved=True)
        assert (edited.answer([asked])[0].edit is None) == (mode == "serving")
        logits[mode] = base, edited.generate(ids, **options).logits[0]
        edited.detach()
    assert same_bits(*logits["serving"]) and not same_bits(*logits["published"])


def test_an_alignment_of_another_rank_is_refused(wrap):
    one, two = (wrap(tiny_model(), tiny_tokenizer(), LteConfig(**{**SETTINGS, "rank": rank})) for rank in (2, 3))
    with refusal("rank 3") as _:
        try:
            two.method.load_ground(one.method.ground())
        except Exception as error:
            raise type(error)(f"{error}.") from None


def test_settings_that_cannot_be_are_refused():
    for wrong in ({"scope": "causal"}, {"mode": "published", "threshold": 0.4}, {"rank": 0}, {"dropout": 1.0}):
        with refusal(list(wrong)[-1]):
            LteConfig(**wrong)
