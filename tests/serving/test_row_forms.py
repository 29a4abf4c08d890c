"""Folders whose rows are kept in different forms, in one server: each answers as in a server of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from batched import NEW, PLAIN, Running, batch, config, tokens
from cases import same_bits
from served import SHARED, Served, store
from tiny import tiny_model, tiny_tokenizer
from transformers import DynamicCache

from corrigenda.editing import Edit, EditedModel
from corrigenda.serving import ServingError

pytestmark = pytest.mark.usefixtures("few_background_prompts")

FORMS = {
    "whole": {"key_dimensions": None, "value_dtype": "model"},
    "small": {"key_dimensions": 32, "value_dtype": "int8"},
    "other seed": {"key_dimensions": 32, "value_dtype": "int8", "seed": 7},
}
EDITS = {
    "whole": SHARED,
    "small": [
        Edit("Who leads Vantrello Foods?", "Lutz", id="leads"),
        Edit("What is the motto of Ostrand?", "bricks", id="motto"),
    ],
    "other seed": [Edit("Who painted the Quillon ceiling?", "Anna", id="painted")],
}
PROMPTS = [edit.prompt for edits in EDITS.values() for edit in edits] + PLAIN[:2]


@pytest.fixture(scope="module")
def root(few_background_prompts, tmp_path_factory):
    root = tmp_path_factory.mktemp("forms")
    for name, settings in FORMS.items():
        store(root / name, EDITS[name], contexts=1, **settings)
    return root


def settings(root, **more):
    return {"edits": [root / name for name in FORMS], "root": root, **more}


def logits(served, prompt):
    """Of a prompt and two tokens after it; the edit's rows are read by the likeness of their keys."""
    ids = [*served.ids(prompt), 40, 41]
    admission = served.catalogue.admit(ids[:-2])
    served.slots.start("one", len(ids) - 2, served.memory.place(admission.key))
    served.slots.describe(["one"], np.array([0]), np.array([len(ids)]))
    with torch.no_grad():
        found = served.model(input_ids=torch.tensor([ids]), past_key_values=DynamicCache()).logits[0]
    served.slots.end("one")
    return found, admission.edit and admission.edit.id


def test_every_folder_gives_the_bits_that_it_gives_alone(root):
    together, base = Served(settings(root)), tiny_model()
    assert len(together.memory.banks.forms()) == 3
    for name, edits in EDITS.items():
        alone = Served(root / name)
        for edit in edits:
            found, answered = logits(together, edit.prompt)
            expected, _ = logits(alone, edit.prompt)
            assert answered == edit.id and same_bits(found, expected)
            with torch.no_grad():
                unedited = base(input_ids=torch.tensor([[*alone.ids(edit.prompt), 40, 41]])).logits[0]
            assert not same_bits(found[-2:], unedited[-2:])
    for prompt in PLAIN:
        found, answered = logits(together, prompt)
        with torch.no_grad():
            expected = base(input_ids=torch.tensor([[*together.ids(prompt), 40, 41]])).logits[0]
        assert answered is None and same_bits(found, expected)


def alone(serve, root):
    """What servers of one folder each answer, prompt by prompt."""
    found = []
    for name, edits in EDITS.items():
        server = serve(root / name)
        found += [tokens(batch(server, server.encode([edit.prompt])))[0] for edit in edits]
    base = tiny_model()
    for row in server.encode(PLAIN[:2]):
        written = base.generate(torch.tensor([row]), max_new_tokens=NEW, do_sample=False, eos_token_id=2)
        found.append(written[0, len(row) :].tolist())
    return found


@pytest.mark.parametrize("more", [{}, {"resident": 6}], ids=str)
def test_one_server_answers_as_several(serve, root, more):
    expected, served = alone(serve, root), serve(settings(root, **more))
    rows = served.encode(PROMPTS)
    outputs, found = served.generate_batch(
        rows, max_new_tokens=NEW, provenance=True, continuous_batching_config=config(max_requests_per_batch=6)
    )
    assert tokens(outputs) == expected
    ids = [edit.id for edits in EDITS.values() for edit in edits]
    assert [one.edit and one.edit.id for one in found.values()] == [*ids, None, None]
    for row, answer in zip(rows, expected):
        written = served.generate(torch.tensor([row]), max_new_tokens=NEW, do_sample=False, eos_token_id=2)
        assert written[0, len(row) :].tolist()[: len(answer)] == answer


def test_rows_of_every_form_make_room_for_others(serve, root):
    expected, few = alone(serve, root), serve(settings(root, resident=1))
    before = None
    for prompt, answer in [*zip(PROMPTS, expected), *zip(PROMPTS, expected)]:
        assert tokens(batch(few, few.encode([prompt]), max_requests_per_batch=1)) == [answer]
        at = [buffer.data_ptr() for buffer in few.memory.banks.buffers()]
        assert before in (None, at) and all(banks.pages_in_use <= 1 for banks in few.memory.banks)
        before = at
    counts = few.paging
    assert counts.evictions == 8 and counts.reads == 11 and counts.hits == 1  # one edit has its form's room to itself


def test_a_folder_of_another_form_comes_and_goes_while_it_serves(serve, root):
    expected, served = alone(serve, root), serve({"edits": root / "whole", "root": root})
    running = Running(served)
    rows = served.encode(PROMPTS)
    base = running.ask(rows[3])
    assert base != expected[3]
    served.load(root / "small")
    assert [running.ask(row) for row in rows[:5]] == expected[:5]
    served.unload(root / "whole")
    assert running.ask(rows[0]) != expected[0] and running.ask(rows[3]) == expected[3]
    served.load(root / "whole")
    assert [running.ask(row) for row in rows[:5]] == expected[:5]
    served.unload(root / "small")
    assert running.ask(rows[3]) == base and len(served.memory) == len(SHARED)
    running.manager.stop(block=True)


def test_what_was_captured_takes_no_form_that_comes_later(root):
    served = Served(root / "whole")
    fresh = type(served.memory)(served.catalogue.config, served.memory.widths, torch.device("cpu"), torch.float32)
    change = Served(settings(root)).catalogue.start
    fresh.reserve(16, served.catalogue.edits_by_form())
    fresh.banks.fix()
    before = [buffer.data_ptr() for buffer in fresh.banks.buffers()]
    fresh.load(root / "whole", change.needed[root / "whole"])
    with pytest.raises(ServingError, match=r"rows of another form \(keys of 32 \(seed 42\), values of int8\)") as error:
        fresh.load(root / "small", change.needed[root / "small"])
    assert error.value.status == 422 and len(fresh) == len(SHARED)
    assert [buffer.data_ptr() for buffer in fresh.banks.buffers()] == before


def test_room_that_is_fixed_is_there_for_every_form_of_the_start(root):
    served = Served(settings(root))
    fresh = type(served.memory)(served.catalogue.config, served.memory.widths, torch.device("cpu"), torch.float32)
    fresh.reserve(16, served.catalogue.edits_by_form())
    fresh.banks.fix()
    before = [buffer.data_ptr() for buffer in fresh.banks.buffers()]
    for folder, edits in served.catalogue.start.needed.items():
        fresh.load(folder, edits)
    assert len(fresh) == 6 and [buffer.data_ptr() for buffer in fresh.banks.buffers()] == before


def test_a_folder_goes_on_in_the_form_that_it_began_with(root, tmp_path):
    edited = EditedModel.from_pretrained(tiny_model(), root / "whole", tokenizer=tiny_tokenizer())
    edited.save_pretrained(tmp_path / "copy")
    edited.detach()
    again = EditedModel.from_pretrained(tiny_model(), tmp_path / "copy", tokenizer=tiny_tokenizer())
    again.edit(Edit("Where is the Ormel bridge?", "bricks", id="later"), store=tmp_path / "copy")
    again.detach()
    memory = Served(tmp_path / "copy").memory
    assert [form.in_words for form in memory.banks.forms()] == ["whole keys, values of the model's type"]
    assert len(memory) == len(SHARED) + 1
