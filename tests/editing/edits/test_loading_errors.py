"""Files of edits that cannot be loaded: one sentence that names the file, the record and the field."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from edit_files import KNOWEDIT, MEND, OWN, QAEDIT, ROME, WIKIBIO, lines, write

from corrigenda.editing.edits.loading import load_edits
from corrigenda.editing.errors import CorrigendaError


def error_of(path: str | Path, **options: Any) -> str:
    with pytest.raises(CorrigendaError) as caught:
        load_edits(path, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"prompt": None}, 'the field "prompt" is missing.'),
        ({"prompt": "  "}, 'the field "prompt" is empty.'),
        ({"prompt": ["p"]}, 'the field "prompt" must be text, not a list.'),
        ({"target_new": ""}, 'the field "target_new" is empty.'),
        ({"target_new": None}, 'the field "target_new" is missing.'),
        ({"target_new": 1931}, 'the field "target_new" must be text, not a number.'),
        ({"id": 1.5}, 'the field "id" must be text, not a number.'),
        ({"id": True}, 'the field "id" must be text, not true or false.'),
        (
            {"subject": "\ud83d"},
            'the field "subject" holds half of a surrogate pair, which no tokenizer reads.',
        ),
        ({"subject": {"name": "x"}}, 'the field "subject" must be text, not an object.'),
        ({"ground_truth": ["x", 3]}, 'the field "ground_truth[1]" must be text, not a number.'),
        ({"rephrase": False}, 'the field "rephrase" must be text, not true or false.'),
        ({"rephrases": [["r"], [{}]]}, 'the field "rephrases[1][0]" must be text, not an object.'),
        ({"locality_prompt": ["x", 3]}, 'the field "locality_prompt[1]" must be text, not a number.'),
        (
            {"locality_prompt": ["x", "y"], "locality_answer": ["z"]},
            'the field "locality_answer" has 1 answers to 2 prompts.',
        ),
        (
            {"locality_prompt": "x", "locality_answer": 3},
            'the field "locality_answer" must be text, not a number.',
        ),
        ({"localities": "x"}, 'the field "localities" must be a list, not text.'),
        ({"localities": ["x", {"answer": "y"}]}, 'the field "localities[1].prompt" is missing.'),
        ({"localities": [7]}, 'the field "localities[0]" must be text, not a number.'),
        ({"locality": {"Kind": 7}}, 'the field "locality.Kind" must be a list, not a number.'),
        ({"metadata": "x"}, 'the field "metadata" must be an object, not text.'),
    ],
)
def test_a_wrong_field_is_named_with_its_place(tmp_path: Path, change: dict, problem: str) -> None:
    path = write(tmp_path, f"{json.dumps(OWN)}\n\n{json.dumps(OWN | change)}\n")
    assert error_of(path) == f"{path}, record 2 (line 3): {problem}"
    path = write(tmp_path, json.dumps([OWN, OWN | change]), "facts.json")
    assert error_of(path) == f"{path}, record 2: {problem}"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"x": float("nan")}, 'the field "x" must be a finite number.'),
        ({"x": {"y": [0, float("-inf")]}}, 'the field "x.y[1]" must be a finite number.'),
        ({"metadata": {"x": float("nan")}}, 'the field "metadata.x" must be a finite number.'),
        ({"x": "\ud800"}, 'the field "x" holds half of a surrogate pair, which cannot be stored.'),
        ({"x\ud800": 1}, 'the field "x\\ud800" has half of a surrogate pair in its name.'),
    ],
)
def test_a_kept_field_that_cannot_be_stored(tmp_path: Path, change: dict, problem: str) -> None:
    path = write(tmp_path, f"{json.dumps(OWN)}\n\n{json.dumps(OWN | change)}\n")
    assert error_of(path) == f"{path}, record 2 (line 3): {problem}"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("[" * 100_000 + "]" * 100_000, "objects or lists are nested too deeply."),
        ("[" * 2_000 + "]" * 2_000, "objects or lists are nested too deeply."),
        ("9" * 5_000, "a number has more than 4300 digits."),
    ],
    ids=["deep", "deep for Python alone", "long"],
)
def test_json_beyond_what_python_takes(tmp_path: Path, value: str, problem: str) -> None:
    record = f'{json.dumps(OWN)[:-1]}, "metadata": {{"x": {value}}}}}'
    path = write(tmp_path, f"{json.dumps(OWN)}\n{record}\n")
    assert error_of(path) == f"{path}, record 2 (line 2): {problem}"
    path = write(tmp_path, record)
    assert error_of(path) == f"{path}, record 1 (line 1): {problem}"
    path = write(tmp_path, f"[{json.dumps(OWN)},\n{record}]", "facts.json")
    assert error_of(path) in (f"{path}, line 2: {problem}", f"{path}, record 2: {problem}")


def without(record: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != name}


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (without(OWN, "prompt"), 'the field "prompt" is missing.'),
        (without(OWN, "target_new"), 'the field "target" is missing.'),
        (OWN | {"target_new": None}, 'the field "target_new" is missing.'),
        (without(MEND, "src"), 'the field "src" is missing.'),
        (without(MEND, "alt"), 'the field "alt" is missing.'),
        (without(WIKIBIO, "text"), 'the field "text" is missing.'),
        (without(WIKIBIO, "labels"), 'the field "labels" is missing.'),
        (
            ROME | {"requested_rewrite": without(ROME["requested_rewrite"], "subject")},
            'the field "requested_rewrite.subject" is missing.',
        ),
        (
            ROME | {"requested_rewrite": without(ROME["requested_rewrite"], "target_new")},
            'the field "requested_rewrite.target_new" is missing.',
        ),
        (
            ROME | {"requested_rewrite": ROME["requested_rewrite"] | {"target_new": {"id": "Q2868"}}},
            'the field "requested_rewrite.target_new.str" is missing.',
        ),
        (ROME | {"requested_rewrite": "x"}, 'the field "requested_rewrite" must be an object, not text.'),
        (ROME | {"requested_rewrite": []}, 'the field "requested_rewrite" is an empty list.'),
        (without(KNOWEDIT, "target_new") | {"target": []}, 'the field "target" must be text, not a list.'),
        (QAEDIT | {"locality": [{"loc_ans": "x"}]}, 'the field "locality[0].loc" is missing.'),
        (
            KNOWEDIT | {"locality": {"Forgetfulness": [{"ground_truth": "x"}]}},
            'the field "locality.Forgetfulness[0].prompt" is missing.',
        ),
    ],
)
def test_the_field_has_the_name_that_the_file_gives_it(tmp_path: Path, record: dict, problem: str) -> None:
    path = write(tmp_path, json.dumps([record]), "facts.json")
    assert error_of(path) == f"{path}, record 1: {problem}"


@pytest.mark.parametrize("name", ["target", "target_new"])
def test_a_missing_target_has_the_name_of_the_files_other_records(tmp_path: Path, name: str) -> None:
    """Whether these come before or after, and whatever else is wrong with those after."""
    whole, part = {"prompt": "p", name: "t"}, {"prompt": "q", "subject": "s"}
    for records, number in (([whole, part], 2), ([part, whole], 1), ([part, whole, 3], 1)):
        path = lines(tmp_path, *records)
        assert error_of(path) == f'{path}, record {number} (line {number}): the field "{name}" is missing.'
    path = write(tmp_path, json.dumps([part, whole]), "facts.json")
    assert error_of(path) == f'{path}, record 1: the field "{name}" is missing.'


def test_no_such_file(tmp_path: Path) -> None:
    path = tmp_path / "absent.jsonl"
    assert error_of(str(path)) == f"There is no file {path}."


def test_a_folder(tmp_path: Path) -> None:
    assert error_of(tmp_path) == f"{tmp_path} is a folder, not a file of edits."


def test_a_path_through_a_file(tmp_path: Path) -> None:
    path = lines(tmp_path, OWN) / "more"
    assert error_of(path) == f"{path} cannot be read: Not a directory."


@pytest.mark.parametrize("text", ["", " \n\n", "\ufeff", "[]", '{"edits": []}'])
def test_no_records(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    assert error_of(path) == f"{path} holds no records."


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_bytes(json.dumps(OWN).encode() + b'\n{"prompt": "Malm\xf6"}\n')
    assert error_of(path).startswith(f"{path}, line 2: the text is not UTF-8: save it in that encoding")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (f'{json.dumps(OWN)}\n\n{{"prompt": "p" "target": "t"}}\n', "record 2 (line 3, column 16)"),
        (f'{{"prompt": "p"\n{json.dumps(OWN)}\n', "record 1 (line 1, column 15)"),
        (f"{json.dumps(OWN)} {json.dumps(OWN)}\n", f"record 1 (line 1, column {len(json.dumps(OWN)) + 2})"),
        ('[\n  {"prompt": "p" "target": "t"}\n]', "line 2, column 18"),
        # Python 3.13 is the first that names the comma.
        ('{\n"prompt": "p",\n}', "line 3, column 1" if sys.version_info < (3, 13) else "line 2, column 14"),
    ],
)
def test_broken_json(tmp_path: Path, text: str, place: str) -> None:
    path = write(tmp_path, text)
    message = error_of(path)
    assert message.startswith(f"{path}, {place}: the JSON is broken (")
    assert message.endswith(").")


@pytest.mark.parametrize(
    ("value", "kind"),
    [("x", "text"), (3, "a number"), (None, "null"), ([OWN], "a list"), (True, "true or false")],
)
def test_a_record_that_is_no_object(tmp_path: Path, value: Any, kind: str) -> None:
    path = lines(tmp_path, OWN, value)
    assert error_of(path) == f"{path}, record 2 (line 2): a record must be an object, not {kind}."
    path = write(tmp_path, json.dumps([OWN, value]), "facts.json")
    assert error_of(path) == f"{path}, record 2: a record must be an object, not {kind}."


def test_the_whole_file_is_checked_whatever_the_limit(tmp_path: Path) -> None:
    path = lines(tmp_path, OWN, {"prompt": "p"})
    assert error_of(path, limit=1) == f'{path}, record 2 (line 2): the field "target_new" is missing.'


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_leaves_nothing(tmp_path: Path, limit: int) -> None:
    assert error_of(lines(tmp_path, OWN), limit=limit) == f"The limit must be at least 1, not {limit}."
