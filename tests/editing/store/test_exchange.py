"""Merging two stores: what counts as one edit, and as one fact."""

from __future__ import annotations

import pytest
from stores import add, new_store

from corrigenda.editing import CorrigendaError, Edit
from corrigenda.editing.store.exchange import merge
from corrigenda.editing.store.ledger import New
from corrigenda.editing.store.store import compact


class TestMerging:
    @pytest.mark.parametrize(
        ("known_by", "prompt", "target", "superseded"),
        [
            ([], "Who leads Qux?", "Anna", []),
            ([], "Who leads Qux?", "Bert", []),
            ([3, 4], "Zed, who wrote it?", "Anna", []),
            ([3, 4], "Zed, who wrote it?", "Bert", ["a"]),
            ([3, 4], "Zed 2, who wrote it?", "Bert", []),
        ],
    )
    def test_the_same_fingerprint_with_another_target_is_the_same_fact(
        self, known_by, prompt, target, superseded
    ) -> None:
        into, other = new_store(), new_store()
        add(into, Edit("Who wrote Zed?", "Anna", id="a"), known_by=known_by)
        add(other, Edit(prompt, target, id="b"), known_by=known_by)
        assert merge(into, other).superseded == superseded
        assert into.notices == [f'Edit "b" supersedes "{name}", which is about the same fact.' for name in superseded]
        names = [into.history.edits[seq].id for seq in into.history.applied()]
        assert names == (["b"] if superseded else ["a", "b"])

    def test_a_folder_from_before_has_the_settings_that_it_does_not_name(self) -> None:
        before, after = new_store(), new_store(key_dimensions=None, value_dtype="model")
        add(before, Edit("Who wrote Zed?", "Anna", id="a"))
        add(after, Edit("Where is Qux?", "Oslo", id="b"))
        assert merge(before, after).added == ["b"] and merge(after, before).added == ["a"]

    def test_rows_of_another_form_are_refused_with_what_to_do(self) -> None:
        whole, small = new_store(), new_store(key_dimensions=256, value_dtype="int8")
        another = new_store(key_dimensions=256, value_dtype="int8", seed=7)
        form = r"different forms \(key_dimensions, value_dtype\). One server takes both folders"
        with pytest.raises(CorrigendaError, match=form):
            merge(whole, small)
        with pytest.raises(CorrigendaError, match=r"differ in config \(key_dimensions, seed, value_dtype\)"):
            merge(whole, another)

    def test_merging_again_adds_nothing(self) -> None:
        into, other = new_store(), new_store()
        add(into, Edit("Who wrote Zed?", "Anna", id="a"))
        add(other, Edit("Where is Qux?", "Oslo", id="a"))
        (name,) = merge(into, other).added
        assert name != "a" and into.history.find(name).edit.id == name
        there, back = merge(into, other), merge(other, into)
        assert (there.added, there.same, there.superseded) == ([], ["a"], [])
        assert back.same == [name] and back.added == list(back.renamed.values()) != ["a"]
        assert merge(into, other).added == merge(other, into).added == []

    def test_what_is_left_out_to_keep_an_edit_is_named_with_it(self) -> None:
        into, other = new_store(), new_store()
        add(into, Edit("Who wrote Zed?", "Anna", id="a"))
        add(other, Edit("who wrote zed", "Bert", id="b"), Edit("Where is Qux?", "Oslo", id="c"))
        result = merge(into, other, "keep")
        assert (result.added, result.kept) == (["c"], {"b": "a"})
        assert into.notices == ['Edit "b" is left out: "a", which is about the same fact, stays.']

    def test_an_edit_that_was_undone_here_is_not_said_to_be_in_effect(self) -> None:
        """It stays undone: who undid it here meant that; and the notice says what puts it in again."""
        into, other = new_store(), new_store()
        for store in (into, other):
            add(store, Edit("Who wrote Zed?", "Anna", id="a"), Edit("Where is Qux?", "Oslo", id="b"))
        into.undo(into.selected(["a"]))
        result = merge(into, other)
        assert (result.added, result.same, result.out) == ([], ["b"], {"a": "undone"})
        assert [into.history.edits[seq].id for seq in into.history.applied()] == ["b"]
        (notice,) = into.notices
        assert notice.startswith('Edit "a" is there, but was undone') and "`corrigenda redo a`" in notice
        into.redo(into.selected(["a"]))
        assert merge(into, other).same == ["a", "b"] and into.notices == [notice]

    def test_an_edit_that_is_superseded_or_forgotten_here(self) -> None:
        into, other = new_store(), new_store()
        for store in (into, other):
            (first, _) = add(store, Edit("Who wrote Zed?", "Anna", id="a"), Edit("Where is Qux?", "Oslo", id="b"))
        add(into, Edit("Who wrote Zed?", "Bert", id="a2"), supersedes=[[first]])
        into.undo(into.selected(["b"]))
        compact(into, forget_undone=True)
        assert merge(into, other).out == {"a": "superseded", "b": "undone"}
        superseded, forgotten = into.notices
        assert 'superseded by "a2": `corrigenda undo a2`' in superseded and "write it anew" in forgotten

    def test_an_edit_that_a_repair_has_lost_comes_in_again(self) -> None:
        into, other = new_store(), new_store()
        for store in (into, other):
            (first,) = add(store, Edit("Who wrote Zed?", "Anna", id="a"))
        into.append([New("lost", {"edits": [first], **into.stamp()})], dropping=[first])
        assert into.history.applied() == []
        result = merge(into, other)
        assert len(result.added) == 1 and result.same == [] and len(into.history.applied()) == 1

    def test_two_edits_of_one_id_get_names_of_their_own(self) -> None:
        into, other = new_store(), new_store()
        (first,) = add(other, Edit("Who wrote Zed?", "Anna", id="a"))
        earlier = other.history.edits[first]
        other.undo([earlier])
        add(other, Edit("Where is Qux?", "Oslo", id="a"))
        other.redo([earlier])
        result = merge(into, other)
        assert result.added == ["a", result.renamed["a"]] and len(set(result.added)) == 2
