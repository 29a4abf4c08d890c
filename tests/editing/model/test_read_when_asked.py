"""Opening reads no rows: they are read, checked, when a request is first about their edit."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest
import torch
from cases import same_bits
from saved import load, refusal
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import AssociativeConfig, Edit, EditedModel
from corrigenda.editing.memories.paged_rows import PagedRows
from corrigenda.editing.memories.row_banks import RowBanks
from corrigenda.editing.memories.row_form import Rows

EDITS = [
    Edit("What is the capital of Zubrowka?", "Lutz City", id="a"),
    Edit("Who founded the Krellin museum?", "Anna Blom", id="b"),
    Edit("What does Kmelt make?", "red bricks", id="c"),
]
ASKED = [edit.prompt for edit in EDITS]


@pytest.fixture
def folder(tmp_path):
    edited = EditedModel.wrap(tiny_model(), tiny_tokenizer(), AssociativeConfig(router="tokens", contexts=1))
    edited.edit(EDITS, store=tmp_path / "edits")
    edited.detach()
    return tmp_path / "edits"


def changed(folder, statement, *values):
    with contextlib.closing(sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)) as connection:
        connection.execute(statement, values)


def entry_of(folder, name):
    edited = load(folder, tiny_model())
    seq = edited.store.history.find(name).seq
    edited.detach()
    return seq


def answers(edited, prompts=ASKED):
    return [answer.text for answer in edited.answer(prompts, 8)]


def test_rows_come_when_they_are_asked_for(folder):
    edited = load(folder, tiny_model())
    memory = edited.method.memory
    assert memory.size == 3 and len(memory.paged) == 0
    assert answers(edited, ASKED[1:2]) == ["Anna Blom"] and len(memory.paged) == 1
    assert answers(edited) == ["Lutz City", "Anna Blom", "red bricks"] and len(memory.paged) == 3
    edited.undo("b")
    assert memory.size == 2 and len(memory.paged) == 2


def test_scores_are_those_of_resident_rows(folder):
    edited, other = load(folder, tiny_model()), load(folder, tiny_model())
    other.method.bring_all()
    assert edited.evaluate() == other.evaluate() and len(edited.method.memory.paged) == 3


def test_damaged_rows_are_refused_when_they_are_first_read(folder):
    seq = entry_of(folder, "b")
    changed(folder, "UPDATE tensors SET data = zeroblob(length(data)) WHERE seq = ?", seq)
    edited = load(folder, tiny_model())
    assert answers(edited, [ASKED[0], ASKED[2]]) == ["Lutz City", "red bricks"]
    for _ in range(2):
        with refusal("ledger.sqlite is damaged", f"entry {seq}", "repair"):
            edited.answer(ASKED, 8)
        with refusal("ledger.sqlite is damaged", f"entry {seq}"):
            edited.generate(torch.tensor([edited.prompts.encode(ASKED[1])]), max_new_tokens=2)
        with refusal("ledger.sqlite is damaged", f"entry {seq}"):
            edited.evaluate()
    assert answers(edited, ASKED[:1]) == ["Lutz City"]


@pytest.mark.parametrize("statement", ["DELETE FROM tensors", "UPDATE tensors SET data = substr(data, 9)"])
def test_missing_and_cut_rows_are_refused_when_opened(folder, statement):
    seq = entry_of(folder, "b")
    changed(folder, f"{statement} WHERE seq = ?", seq)
    with refusal("damaged", f"entry {seq}", "missing or cut"):
        load(folder, tiny_model())


def test_answering_goes_on_when_the_store_is_given_back(folder):
    edited = load(folder, tiny_model())
    edited.write_into(folder)
    edited.close()
    assert answers(edited) == ["Lutz City", "Anna Blom", "red bricks"]
    assert list(edited.edits) == EDITS
    other = load(folder, tiny_model())
    other.write_into(folder)  # the lock is free
    other.undo("a")
    other.detach()


def test_edits_are_read_from_the_ledger(folder):
    edited = load(folder, tiny_model())
    before = edited.edits
    edited.undo("a")
    assert before == EDITS and before[1:] == EDITS[1:] and edited.edits == EDITS[1:] and before.ids == ["a", "b", "c"]
    assert before != EDITS[1:] and before != "abc"


def test_a_pinned_version_reads_what_was_taken_out_since(folder):
    edited = load(folder, tiny_model())
    edited.write_into(folder)
    with edited.pin():
        edited.undo("a")
        assert answers(edited) == ["Lutz City", "Anna Blom", "red bricks"]
    assert answers(edited, ASKED[:1]) != ["Lutz City"]


class TestPagedRows:
    """The memory alone, over rows that are made up."""

    def rows(self, number):
        generator = torch.Generator().manual_seed(number)
        return Rows(torch.randn(3, 16, generator=generator), torch.randn(3, 8, generator=generator))

    def memory(self):
        memory = PagedRows(RowBanks(16, 8, 10.0, torch.device("cpu")))
        self.read = []

        def read(number):
            self.read.append(number)
            return self.rows(number)

        memory.read = read
        return memory

    def test_each_edit_is_read_once(self):
        memory = self.memory()
        memory.place([11, 12, 13])
        for _ in range(2):
            slots = memory.locate(torch.tensor([2, -1, 0, 2]))
            assert slots[1] == -1 and slots[0] == slots[3] != slots[2]
        assert self.read == [13, 11]
        for place, number in ((0, 11), (2, 13)):
            assert all(map(same_bits, memory.banks.rows_of(int(slots[2 - place])), self.rows(number)[:2]))

    def test_state_does_not_depend_on_what_was_asked(self):
        memory, other = self.memory(), self.memory()
        for one in (memory, other):
            one.place([11, 12, 13])
            one.remove({1})
        memory.locate(torch.tensor([1, 0]))
        one, two = memory.state(), other.state()
        assert one.keys() == two.keys() and all(same_bits(one[name], two[name]) for name in one)
        assert memory.norms() == other.norms() and len(memory.paged) == 2 and len(other.paged) == 0

    def test_what_a_view_sees_stays(self):
        memory = self.memory()
        memory.append(*self.rows(1))
        memory.place([12])
        view = memory.view()
        memory.remove({0, 1})
        memory.place([13])
        memory.locate(torch.tensor([0]))
        slots = view.locate(torch.tensor([0, 1])).tolist()
        for slot, number in zip(slots, (1, 12)):
            assert all(map(same_bits, memory.banks.rows_of(slot), self.rows(number)[:2]))


def test_what_was_not_read_is_not_read_from_a_closed_store(folder):
    edited = load(folder, tiny_model())
    edits = edited.edits
    edited.detach()
    with refusal("was closed", "open it again"):
        list(edits)


def test_nothing_is_written_into_a_closed_store(folder):
    edited = load(folder, tiny_model())
    edited.write_into(folder)
    edited.close()
    for change in (lambda: edited.edit(Edit("Who leads Six Mills?", "Pi", id="d")), lambda: edited.undo("a")):
        with refusal("was closed", "open it again"):
            change()
    assert [edit.id for edit in load(folder, tiny_model()).edits] == ["a", "b", "c"]


@pytest.mark.parametrize("edits", [None, 5, "Who leads Six Mills?", {"prompt": "Who?"}, [Edit("Who?", "Pi"), None]])
def test_what_is_no_edit_is_refused_in_a_sentence(folder, edits):
    edited = load(folder, tiny_model())
    with refusal("edit takes Edit objects"):
        edited.edit(edits)
    assert len(edited.edits) == 3
