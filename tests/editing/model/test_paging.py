"""Many edits with room for a few: every answer is that with all of them resident."""

from __future__ import annotations

import random

import pytest
import torch
from cases import same_bits
from saved import load, refusal
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import AssociativeConfig, Edit, EditedModel
from corrigenda.editing.memories.paged_banks import PagedBanks, PagingCounts
from corrigenda.editing.memories.row_banks import RowBanks
from corrigenda.editing.memories.row_form import RowForm, Rows

TARGETS = ("red bricks", "Lutz City", "a long answer of many more tokens than others have")
EDITS = [Edit(f"What does the firm {name} make?", TARGETS[n % 3], id=name) for n, name in enumerate("ABCDEFGHIJ")]
ROOM = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("paging") / "edits"
    edited = EditedModel.wrap(tiny_model(), tiny_tokenizer(), AssociativeConfig(router="tokens", contexts=1, steps=5))
    edited.edit(EDITS, store=path, keep_unsolved=True)
    edited.detach()
    return path


def paged(folder, room=ROOM):
    return EditedModel.from_pretrained(tiny_model(), folder, tokenizer=tiny_tokenizer(), resident=room)


def addresses(edited):
    return [buffer.data_ptr() for buffer in edited.method.banks.buffers()]


def test_answers_are_those_of_resident_rows(folder):
    every, few = load(folder, tiny_model()), paged(folder)
    before, chance = addresses(few), random.Random(0)
    for _ in range(12):
        asked = [edit.prompt for edit in chance.choices(EDITS, k=2)]
        answers, expected = few.answer(asked, 6), every.answer(asked, 6)
        assert [answer.text for answer in answers] == [answer.text for answer in expected]
        assert [answer.edit for answer in answers] == [answer.edit for answer in expected]
        assert few.method.banks.pages_in_use <= ROOM
    assert any(answer.edit for answer in expected) and addresses(few) == before
    counts = few.paging
    assert counts.hits and counts.evictions and counts.reads == counts.evictions + len(few.method.memory.paged)
    assert every.paging.evictions == 0 and every.paging.reads <= len(EDITS) < counts.reads
    one, two = few.method.state(), every.method.state()
    assert all(same_bits(one[name], two[name]) for name in one)


def test_edits_are_written_undone_and_answered_beside_others(folder, tmp_path):
    few = paged(folder)
    few.save_pretrained(tmp_path / "copy")
    few = paged(tmp_path / "copy")
    few.write_into(tmp_path / "copy")
    few.edit(Edit("Who leads Vantrello Foods?", "Ines Okafor", id="new"))
    assert few.answer(["Who leads Vantrello Foods?"], 8)[0].text == "Ines Okafor"
    before = few.answer([EDITS[0].prompt], 6)[0]
    few.undo("A")
    assert few.answer([EDITS[0].prompt], 6)[0].edit is None
    few.redo("A")
    assert few.answer([EDITS[0].prompt], 6)[0] == before
    with pytest.raises(Exception, match="detach the edits instead"):
        few.close()
    assert few.answer([EDITS[0].prompt], 6)[0] == before


def test_more_than_there_is_room_for_is_refused_and_the_next_is_answered(folder):
    few = paged(folder, 1)
    asked = [edit.prompt for edit in EDITS[:2]]
    routed = [answer.edit for answer in load(folder, tiny_model()).answer(asked, 2)]
    assert None not in routed
    with refusal("asked for at once", "resident"):
        few.answer(asked, 2)
    assert [answer.edit for answer in few.answer(asked, 2, batch_size=1)] == routed


@pytest.mark.parametrize("resident", [0, -1, True, "8"])
def test_room_is_a_number(folder, resident):
    with refusal("`resident` must be a whole number above 0"):
        paged(folder, resident)


def test_other_methods_have_no_paging():
    with refusal('router="mask"', "leave out `resident`"):
        EditedModel.wrap(tiny_model(), tiny_tokenizer(), AssociativeConfig(router="mask"), resident=4)


class TestPagedBanks:
    def rows(self, number, count=3):
        generator = torch.Generator().manual_seed(number)
        return Rows(torch.randn(count, 16, generator=generator), torch.randn(count, 8, generator=generator))

    def test_what_was_asked_for_longest_ago_makes_room(self):
        memory = PagedBanks(RowBanks(16, 8, 10.0, torch.device("cpu")))
        memory.limit(3, 8, 24)

        def bring(number, kept=(), count=3):
            slot = memory.bring(number, lambda: self.rows(number, count), kept)
            assert all(same_bits(a, b) for a, b in zip(memory.banks.kept_rows(slot), self.rows(number, count)[:2]))
            return [other for other in range(9) if other in memory]

        assert bring(1) == [1] and bring(2) == [1, 2] and bring(3) == [1, 2, 3]
        assert bring(1) == [1, 2, 3] and bring(4) == [1, 3, 4]
        assert bring(5, kept={3, 1}) == [1, 3, 5]
        assert bring(6, kept={5}, count=15) == [5, 6]
        with refusal("at once", "24"):
            bring(7, kept={5}, count=17)
        with refusal("at once", "24"):
            bring(8, count=25)
        assert [other for other in range(9) if other in memory] == [5, 6] and bring(7, count=24) == [7]
        sizes = [4 * 24 * 3 for _ in range(5)] + [4 * 24 * 15, 4 * 24 * 24]
        assert memory.counts == PagingCounts(1, 7, 6, sum(sizes))

    def test_any_order_of_sizes_fits(self):
        form, chance = RowForm(None, "int8"), random.Random(1)
        memory = PagedBanks(RowBanks(4, 4, 1.0, torch.device("cpu"), form=form))
        memory.limit(7, 8, 56)
        before = [buffer.data_ptr() for buffer in memory.banks.buffers()]
        for number in range(300):
            count = chance.choice([1, 8, 9, 17, 40, 56])
            rows = form.kept(torch.ones(count, 4), torch.full((count, 4), float(number)), torch.float32)
            slot = memory.bring(number, lambda rows=rows: rows, ())
            assert all(map(same_bits, memory.banks.kept_rows(slot), rows)) and memory.banks.pages_in_use <= 7
            assert memory.banks.has_room([8] * (7 - memory.banks.pages_in_use))
        assert [buffer.data_ptr() for buffer in memory.banks.buffers()] == before
