"""Edits that are read in the prompt: what the model reads, in every way of asking it."""

from __future__ import annotations

import pytest
import torch
from stores import refusal
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import Edit
from corrigenda.editing.memories.prompt import text_of, text_tensor
from corrigenda.editing.methods.prompted import notice
from corrigenda.editing.methods.rag.config import RagConfig

TEMPLATE = "Question: {prompt}\nAnswer:"
EDITS = [
    Edit("What is the capital of Zubrowka?", "Lutz City", id="a", rephrases=["Which city is Zubrowka's capital?"]),
    Edit("Who founded the Krellin museum?", "Anna Blom", id="b"),
]
ELSEWHERE = "Where do the birds of the far north go in the long winter months of the year?"
pytestmark = pytest.mark.usefixtures("few_background_prompts")


@pytest.fixture
def rag(wrap):
    def build(template=TEMPLATE, chat_template=False, kind="llama", tokenizer=None, edits=EDITS, **settings):
        options = {"template": template, "chat_template": chat_template}
        edited = wrap(tiny_model(kind), tokenizer or tiny_tokenizer(), RagConfig(**settings), **options)
        edited.edit(edits)
        return edited

    return build


def of_base(edited, text, count=5):
    """Tokens that the unedited model goes on with."""
    ids = torch.tensor([edited.prompts.encode(text)])
    with edited._provider.aside():
        return edited.model.generate(ids, max_new_tokens=count, do_sample=False)[0, ids.shape[1] :].tolist()


def asked(edited, *prompts):
    """Ids and mask of prompts, padded on the left."""
    tokenizer = edited.tokenizer
    tokenizer.padding_side = "left"
    found = tokenizer([edited.prompts.wrap(prompt) for prompt in prompts], return_tensors="pt", padding=True)
    return found["input_ids"], found["attention_mask"]


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("form", ["example", "notice"])
def test_a_routed_prompt_is_answered_as_with_the_text_before_it(rag, kind, form):
    edited = rag(kind=kind, form=form)
    before = {
        "example": "Question: What is the capital of Zubrowka?\nAnswer: Lutz City<|im_end|>\n\n",
        "notice": notice(["What is the capital of Zubrowka? Lutz City"]),
    }[form]
    for prompt in [EDITS[0].prompt, EDITS[0].rephrases[0]]:
        ids, mask = asked(edited, prompt)
        output, (source,) = edited.generate(
            ids, attention_mask=mask, max_new_tokens=5, do_sample=False, provenance=True
        )
        assert source.edit.id == "a"
        assert output[0, : ids.shape[1]].tolist() == ids[0].tolist()
        assert output[0, ids.shape[1] :].tolist() == of_base(edited, before + TEMPLATE.format(prompt=prompt))
        assert edited.model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False).equal(output)


def test_prompts_in_one_call_are_answered_as_alone(rag):
    edited = rag()
    prompts = [EDITS[0].prompt, ELSEWHERE, EDITS[1].prompt]
    ids, mask = asked(edited, *prompts)
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    together = edited.generate(ids, attention_mask=mask, **settings)
    for row, prompt in zip(together, prompts):
        own, own_mask = asked(edited, prompt)
        alone = edited.generate(own, attention_mask=own_mask, **settings)
        assert row[ids.shape[1] :].tolist() == alone[0, own.shape[1] :].tolist()
    assert together[:, : ids.shape[1]].equal(ids)
    texts = [answer.text for answer in edited.answer(prompts, 4)]
    assert texts == [edited.answer([prompt], 4)[0].text for prompt in prompts]


def test_samples_and_lengths_are_those_that_were_asked_for(rag):
    edited = rag()
    ids, mask = asked(edited, EDITS[0].prompt)
    settings = {"attention_mask": mask, "min_new_tokens": 3, "pad_token_id": 0}
    found = edited.generate(ids, max_length=ids.shape[1] + 3, do_sample=False, **settings)
    assert found.shape[1] == ids.shape[1] + 3
    found = edited.generate(
        ids, max_new_tokens=3, do_sample=True, num_return_sequences=3, return_dict_in_generate=True, **settings
    )
    assert found.sequences.shape == (3, ids.shape[1] + 3)
    assert all(row[: ids.shape[1]].equal(ids[0]) for row in found.sequences)


def test_in_a_chat_the_text_stands_in_the_users_turn(rag):
    edited = rag(template=None, chat_template=True)
    rows = [edited.prompts.encode(edited.prompts.wrap(prompt)) for prompt in (EDITS[0].prompt, ELSEWHERE)]
    read, decision = edited.read_as(rows)
    assert decision.route.tolist() == [0, -1] and read[1] == rows[1]
    text = edited.tokenizer.decode(read[0])
    assert text == (
        "<|im_start|>user\nWhat is the capital of Zubrowka? Lutz City\n\nWhat is the capital of Zubrowka?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_first_token_stays_the_first(rag):
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    edited = rag(tokenizer=tokenizer)
    start = tokenizer.bos_token_id
    row = [start, *edited.prompts.encode(edited.prompts.wrap(EDITS[0].prompt))]
    (read,), _ = edited.read_as([row])
    assert read[0] == start and start not in read[1:] and read[-len(row) + 1 :] == row[1:]


def test_with_a_threshold_of_zero_the_nearest_edit_is_put_before_every_prompt(rag):
    assert rag(threshold=0.0).answer([ELSEWHERE])[0].edit is not None
    assert rag().answer([ELSEWHERE])[0].edit is None


def test_scores_are_of_what_the_model_reads(rag):
    edited = rag()
    scores = edited.evaluate()
    assert scores.routed == scores.routed_gen == 1.0
    for edit, found in zip(EDITS, [one["rel"] for one in scores_by_edit(edited)]):
        prompt, target = edited.prompts.encode_with_target(edit.prompt, edit.target)
        (read,), _ = edited.read_as([prompt])
        with edited._provider.aside(), torch.no_grad():
            logits = edited.model(torch.tensor([read + target])).logits[0, len(read) - 1 : -1]
        assert found == pytest.approx((logits.argmax(-1) == torch.tensor(target)).float().mean().item())


def scores_by_edit(edited):
    from corrigenda.editing import Evaluator

    evaluator = Evaluator(edited, free=False)
    evaluator.score(EDITS)
    return evaluator.by_edit


def test_what_cannot_be_answered_is_refused(rag):
    edited = rag()
    ids, mask = asked(edited, EDITS[0].prompt)
    with refusal("past_key_values"):
        edited.generate(ids, attention_mask=mask, past_key_values=object())
    with refusal("read_as"), edited.teacher_forcing(ids, [ids.shape[1]], [ids.shape[1]]):
        pass
    with refusal("512", "shorten"):
        row = torch.tensor([[5] * 500 + ids[0].tolist()[-12:]])
        edited.method.router.threshold_setting, edited.method.router._stale = 0.0, True
        edited.generate(row, max_new_tokens=1)


def test_undo_takes_the_text_out(rag):
    edited = rag()
    before = edited.detach()
    edited = rag()
    edited.undo("a")
    assert edited.method.memory.texts == ["Question: Who founded the Krellin museum?\nAnswer: Anna Blom<|im_end|>\n\n"]
    assert edited.answer([EDITS[0].prompt])[0].edit is None and before is not None


@pytest.mark.parametrize("text", ["", "plain", "Zürich\n→ 東京"])
def test_a_text_goes_through_a_record(text):
    assert text_of(text_tensor(text)) == text


def test_a_record_that_is_no_text_is_refused():
    for wrong in ([300.0], [0.5], [-1.0], [255.0]):
        with pytest.raises(Exception, match="UTF-8"):
            text_of(torch.tensor(wrong))


def test_settings_that_cannot_be_are_refused():
    with refusal("scope"):
        RagConfig(scope="full")
    with refusal("threshold"):
        RagConfig(threshold=None)
    with refusal("form"):
        RagConfig(form="letter")


def test_a_server_refuses_them_at_its_start(rag, tmp_path):
    from corrigenda.serving import Catalogue, ServingSettings

    rag().save_pretrained(tmp_path / "edits")
    with refusal("rag", "text", "associative"):
        Catalogue(tiny_tokenizer(), ServingSettings.parse(tmp_path / "edits"))
