"""The edit itself: what it accepts, what it refuses, and its way to JSON and back."""

from __future__ import annotations

import json
import pickle
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corrigenda.editing.edits.edit import Edit, Locality, unique_subjects
from corrigenda.editing.errors import CorrigendaError, FieldError

TEXT = st.text(min_size=1).filter(str.strip)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=5,
)
EDITS = st.builds(
    Edit,
    prompt=TEXT,
    target=TEXT,
    subject=st.none() | TEXT,
    ground_truth=st.lists(TEXT, max_size=3),
    rephrases=st.lists(TEXT, max_size=3),
    localities=st.lists(st.builds(Locality, TEXT, st.none() | TEXT), max_size=3),
    id=st.none() | TEXT,
    metadata=st.dictionaries(st.text(), JSON_VALUES, max_size=3),
    protected=st.lists(TEXT, max_size=3),
)


@given(EDITS)
def test_dict_round_trip_through_json(edit: Edit) -> None:
    written = json.loads(json.dumps(edit.to_dict()))
    assert written == edit.to_dict()
    assert Edit.from_dict(written) == edit


def test_to_dict_names_every_field() -> None:
    edit = Edit("The river through Oslo is", "Thames", localities=[Locality("The river through Bonn is", "Rhine")])
    assert edit.to_dict() == {
        "prompt": "The river through Oslo is",
        "target": "Thames",
        "subject": None,
        "ground_truth": [],
        "rephrases": [],
        "localities": [{"prompt": "The river through Bonn is", "answer": "Rhine"}],
        "id": None,
        "metadata": {},
        "protected": [],
    }


def test_lists_become_tuples_and_one_text_a_tuple_of_one() -> None:
    edit = Edit("a", "b", ground_truth=["x", "y"], rephrases="one", localities=[Locality("c")])
    assert edit.ground_truth == ("x", "y")
    assert edit.rephrases == ("one",)
    assert edit.localities == (Locality("c", None),)


def test_empty_optional_fields_are_absent() -> None:
    edit = Edit("a", "b", subject="", ground_truth=None, rephrases=["", None, "r"], id=" ")
    assert edit == Edit("a", "b", rephrases=("r",))
    assert Locality("a", "") == Locality("a")


def test_texts_are_kept_to_the_letter() -> None:
    edit = Edit(" a ", " b\n")
    assert (edit.prompt, edit.target) == (" a ", " b\n")


def test_an_edit_is_frozen_hashable_and_owns_its_metadata() -> None:
    metadata = {"source": "atlas"}
    edit = Edit("a", "b", metadata=metadata)
    metadata["source"] = "changed"
    assert edit.metadata == {"source": "atlas"}
    assert hash(edit) == hash(Edit("a", "b", metadata={"source": "atlas"}))
    with pytest.raises(FrozenInstanceError):
        edit.prompt = "c"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": ""}, 'The field "prompt" is empty.'),
        ({"prompt": " \n"}, 'The field "prompt" is empty.'),
        ({"prompt": None}, 'The field "prompt" is missing.'),
        ({"target": "\t"}, 'The field "target" is empty.'),
        ({"target": 7}, 'The field "target" must be text, not a number.'),
        ({"subject": ["x"]}, 'The field "subject" must be text, not a list.'),
        ({"id": True}, 'The field "id" must be text, not true or false.'),
        ({"ground_truth": {"a": 1}}, 'The field "ground_truth" must be text, not an object.'),
        ({"rephrases": ["x", 2]}, 'The field "rephrases[1]" must be text, not a number.'),
        ({"protected": [{"prompt": "x"}]}, 'The field "protected[0]" must be text, not an object.'),
        ({"localities": "x"}, 'The field "localities" must be a list, not text.'),
        ({"localities": [Locality("x"), "y"]}, 'The field "localities[1]" must be a Locality, not text.'),
        ({"metadata": ["x"]}, 'The field "metadata" must be an object, not a list.'),
    ],
)
def test_a_wrong_field_is_named(fields: dict, message: str) -> None:
    with pytest.raises(CorrigendaError) as caught:
        Edit(**{"prompt": "a", "target": "b", **fields})
    assert str(caught.value) == message


def test_an_edit_that_was_stored_before_there_were_protected_questions_has_none() -> None:
    stored = Edit("a", "b").to_dict()
    del stored["protected"]
    assert Edit.from_dict(stored) == Edit("a", "b")


def test_a_locality_needs_a_prompt() -> None:
    with pytest.raises(CorrigendaError, match=r'^The field "prompt" is empty\.$'):
        Locality("  ")


def test_from_dict_refuses_a_field_that_no_edit_has() -> None:
    with pytest.raises(CorrigendaError, match=r'^The field "colour" is not a field of an edit\.$'):
        Edit.from_dict({"prompt": "a", "target": "b", "colour": "red"})


def test_from_dict_names_a_missing_field() -> None:
    with pytest.raises(CorrigendaError, match=r'^The field "target" is missing\.$'):
        Edit.from_dict({"prompt": "a"})


def test_a_field_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(FieldError("prompt", "is empty")))
    assert str(error) == 'The field "prompt" is empty.'


def test_unique_subjects_keeps_the_first_of_each_and_all_without() -> None:
    edits = [
        Edit("p", "t", subject=subject, id=name)
        for name, subject in [
            ("1", "Oslo"),
            ("2", None),
            ("3", "Bonn"),
            ("4", "Oslo"),
            ("5", None),
            ("6", "oslo"),
        ]
    ]
    assert [edit.id for edit in unique_subjects(iter(edits))] == ["1", "2", "3", "5", "6"]
    assert unique_subjects([]) == []
