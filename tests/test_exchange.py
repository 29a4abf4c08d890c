"""Merging two stores: what counts as one edit, and as one fact."""

from __future__ import annotations

import pytest
from stores import add, new_store

from corrigenda.editing import Edit
from corrigenda.editing.store.exchange import merge


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
        names = [into.history.edits[seq].id for seq in into.history.applied()]
        assert names == (["b"] if superseded else ["a", "b"])

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

    def test_two_edits_of_one_id_get_names_of_their_own(self) -> None:
        into, other = new_store(), new_store()
        (first,) = add(other, Edit("Who wrote Zed?", "Anna", id="a"))
        earlier = other.history.edits[first]
        other.undo([earlier])
        add(other, Edit("Where is Qux?", "Oslo", id="a"))
        other.redo([earlier])
        result = merge(into, other)
        assert result.added == ["a", result.renamed["a"]] and len(set(result.added)) == 2
