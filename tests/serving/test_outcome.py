"""No edit is named for an answer that a grammar, a banned token or sampling let not be its own."""

from __future__ import annotations

import asyncio
import json

import pytest
import torch
from batched import IDS, NEW, PROMPTS, config, tokens
from served import SHARED, answer_starts, banned
from tiny import END, tiny_tokenizer
from transformers import GenerationConfig

from corrigenda.editing.edits.answer_start import UNSAID
from corrigenda.editing.routers.progress import AnswerProgress
from corrigenda.serving.edit_header import EditHeader, current_request

pytestmark = pytest.mark.usefixtures("few_background_prompts")

EDIT = SHARED[0]


# By the tokens that were written


@pytest.mark.parametrize(
    "written, said",
    [
        (f" Lutz City{END}", True),
        ("Lutz City", True),
        ("\nLutz City and more", True),
        (" Lutz", True),  # cut off in the middle, by a limit
        (f" Lutz{END}", False),
        (" Lutz Town", False),
        (" Lutz Cityside", False),
        ('{"answer": "Lutz Citys"}', False),
        ("London", False),
        ("\n\n", False),
        ("", False),
        ('{"answer": "Lutz City"}', True),
        ('{"answer": "', False),
        ('{"answer": "London", "because": "of it"}', False),
    ],
)
def test_what_an_answer_says(written, said):
    found = answer_starts()
    prompt = found.prompts.encode(found.prompts.wrap(EDIT.prompt))
    progress = AnswerProgress(found.prompts.vocabulary.kinds, 1, torch.device("cpu"))
    for _ in range(2):  # nothing of one is left for the next
        assert progress.says(found.plan(prompt, EDIT), tiny_tokenizer()(written)["input_ids"]) is said


# In transformers


def test_a_batch_names_no_edit_for_what_it_could_not_say(serve, folders):
    served = serve(folders / "shared")
    rows = served.encode(PROMPTS)
    form = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=2, suppress_tokens=banned())
    outputs, found = served.generate_batch(
        rows, generation_config=form, provenance=True, continuous_batching_config=config()
    )
    assert [one.edit for one in found.values()] == [None] * len(rows)
    assert [one.reason == UNSAID for one in found.values()] == [edit is not None for edit in IDS]
    assert [one.nearest.id for one, edit in zip(found.values(), IDS) if edit] == [edit for edit in IDS if edit]
    assert all(not set(banned()).intersection(new) for new in tokens(outputs))
    counted = {edit["id"]: edit["answered"] for edit in served.catalogue.listing()["edits"]}
    assert counted == {"a": 0, "b": 0, "c": 0}


def test_generate_on_a_served_model_names_none_either(serve, folders):
    served = serve(folders / "shared")
    ids = torch.tensor([served.encode(PROMPTS[:1])[0]])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "provenance": True}
    _, (found,) = served.generate(ids, **options)
    assert found.edit.id == "a"
    _, (found,) = served.generate(ids, suppress_tokens=banned(), **options)
    assert found.edit is None and found.reason == UNSAID


# Over HTTP


@pytest.mark.parametrize("last", [b"data: [DONE]\n\n", b""])
def test_a_stream_that_named_an_edit_takes_it_back_before_its_end(last):
    async def app(scope, receive, send):
        current_request().decided("a", 3)
        place = current_request().decided("b", 3)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        current_request().edits[place] = None
        await send({"type": "http.response.body", "body": b"data: 2\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": last, "more_body": bool(last)})
        if last:
            await send({"type": "http.response.body", "body": b""})

    messages = []

    async def keep(message):
        messages.append(message)

    asyncio.run(EditHeader(app)({"type": "http", "headers": []}, None, keep))
    first, *rest = messages
    assert dict(first["headers"])[b"x-corrigenda-edit"] == b"a,b"
    whole = b"".join(piece["body"] for piece in rest)
    before, _, after = whole.partition(b": corrigenda ")
    told, _, end = after.partition(b"\n\n")
    assert before == b"data: 1\n\ndata: 2\n\n" and json.loads(told)["edits"] == ["a", None]
    assert end == last and b": corrigenda" not in end
