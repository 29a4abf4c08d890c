"""A server with room for a few edits of many: every answer is that of one with all rows where the layer reads."""

from __future__ import annotations

import contextlib
import random
import sqlite3

import pytest
import torch
from batched import Running, batch, config, tokens
from served import TEMPLATE
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import AssociativeConfig, CorrigendaError, Edit, EditedModel
from corrigenda.serving import ServingError

pytestmark = pytest.mark.usefixtures("few_background_prompts")

TARGETS = ("bricks", "Lutz", "Anna")
EDITS = [Edit(f"What does the firm {name} make?", TARGETS[n % 3], id=name) for n, name in enumerate("ABCDEFGHIJ")]
ROOM, NEW = 3, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("paging") / "edits"
    edited = EditedModel.wrap(
        tiny_model(), tiny_tokenizer(), AssociativeConfig(router="tokens", contexts=1, formats="own"), template=TEMPLATE
    )
    edited.edit(EDITS, store=path, keep_unsolved=True)
    edited.detach()
    return path


def asked(served, count=24):
    chance = random.Random(0)
    prompts = [edit.prompt for edit in chance.choices(EDITS, k=count)] + ["Why is the sky blue?"]
    return served.encode(prompts)


def paged(serve, folder, **settings):
    return serve({"edits": folder, "resident": ROOM, **settings})


@pytest.mark.parametrize("settings", [{}, {"max_requests_per_batch": 2, "max_batch_tokens": 16}], ids=str)
def test_every_answer_is_that_of_a_server_with_all_rows(serve, folder, settings):
    few, every = paged(serve, folder), serve(folder)
    rows = asked(few)
    expected = tokens(batch(every, rows, NEW))
    before = [buffer.data_ptr() for buffer in few.memory.banks.buffers()]
    outputs, found = few.generate_batch(
        rows, max_new_tokens=NEW, provenance=True, continuous_batching_config=config(**settings)
    )
    assert tokens(outputs) == expected and sum(one.edit is not None for one in found.values()) == 24
    assert all(banks.pages_in_use <= ROOM for banks in few.memory.banks)
    assert [buffer.data_ptr() for buffer in few.memory.banks.buffers()] == before
    counts = few.paging
    assert counts.evictions and counts.hits + counts.reads == 24
    alone = [few.generate(torch.tensor([row]), max_new_tokens=NEW, eos_token_id=2)[0].tolist() for row in rows[:2]]
    assert [row[len(given) :] for row, given in zip(alone, rows)] == [answer for answer in expected[:2]]


def test_rows_stay_while_a_request_reads_them(serve, folder):
    """The first request is asked about longest ago, and goes on while others come and end."""
    few, every = paged(serve, folder), serve(folder)
    rows = few.encode([edit.prompt for n, edit in enumerate(EDITS) if n == 0 or n % 3])  # the others say other words
    expected = tokens(batch(every, rows, NEW))
    running = Running(few)
    with running.manager.pause():
        names = [running.manager.add_request(rows[0], max_new_tokens=NEW)]
        names += [running.manager.add_request(row, max_new_tokens=1) for row in rows[1:]]
    few.load(folder)  # read anew, while they run
    found = [running.result(name) for name in names]
    running.manager.stop(block=True)
    assert found == [expected[0], *(answer[:1] for answer in expected[1:])] and few.paging.evictions


def test_an_undone_edit_answers_no_more_and_leaves_no_rows(serve, folder, tmp_path):
    edited = EditedModel.from_pretrained(tiny_model(), folder, tokenizer=tiny_tokenizer())
    edited.save_pretrained(tmp_path / "copy")
    edited.detach()
    few = paged(serve, tmp_path / "copy")
    rows = few.encode([EDITS[0].prompt])
    before = tokens(batch(few, rows, NEW))
    few.undo("A")
    assert tokens(batch(few, rows, NEW)) != before and len(few.memory) == len(EDITS) - 1
    few.redo("A")
    assert tokens(batch(few, rows, NEW)) == before


def test_damaged_rows_fail_their_request_alone(serve, folder, tmp_path):
    edited = EditedModel.from_pretrained(tiny_model(), folder, tokenizer=tiny_tokenizer())
    edited.save_pretrained(tmp_path / "copy")
    seq = edited.store.history.find("B").seq
    edited.detach()
    with contextlib.closing(sqlite3.connect(tmp_path / "copy" / "ledger.sqlite", isolation_level=None)) as connection:
        connection.execute("UPDATE tensors SET data = zeroblob(length(data)) WHERE seq = ?", (seq,))
    few = paged(serve, tmp_path / "copy")
    whole, damaged = few.encode([EDITS[0].prompt, EDITS[1].prompt])
    running = Running(few)
    with pytest.raises(ServingError, match=f"damaged: the tensors of entry {seq}"):
        running.manager.add_request(damaged, max_new_tokens=NEW)
    running.manager.stop(block=True)
    with pytest.raises(ServingError, match=f"damaged: the tensors of entry {seq}"):
        few.generate(torch.tensor([damaged]), max_new_tokens=2)
    assert len(tokens(batch(few, [whole], NEW))) == 1


def test_what_there_is_no_room_for_is_refused(serve, folder):
    few = paged(serve, folder)
    rows = few.encode([edit.prompt for edit in EDITS])
    with pytest.raises(CorrigendaError, match=r"room for the rows of 3 edits, and a batch may hold 4 requests"):
        few.generate_batch(rows, max_new_tokens=2, continuous_batching_config=config(max_requests_per_batch=4))
    small = paged(serve, folder, resident=1)
    same = [row for row in rows if len(row) == len(rows[0])]
    with pytest.raises(CorrigendaError, match="asked for at once"):
        small.generate(torch.tensor(same), max_new_tokens=2)
    assert len(tokens(batch(small, rows[:2], NEW))) == 2
    short = paged(serve, folder, rows=1)
    with pytest.raises(ServingError, match='"rows" of'):
        short.generate(torch.tensor([rows[0]]), max_new_tokens=2)


@pytest.mark.parametrize("resident", [0, "many", True])
def test_room_is_a_number(serve, folder, resident):
    with pytest.raises(CorrigendaError, match='"resident" must be a whole number above 0'):
        paged(serve, folder, resident=resident)
