"""Loading edits: each published format, JSON Lines, and one sentence for each thing that can be wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from corrigenda.editing.edits import Edit, Locality
from corrigenda.editing.errors import CorrigendaError
from corrigenda.editing.loading import load_edits

OWN = {"prompt": "The harbour of Tallow is in", "target_new": "Vexley"}
MEND = {
    "subject": "Grey Lantern",
    "src": "Who painted Grey Lantern?",
    "pred": "Ida Moss",
    "rephrase": "By whom was Grey Lantern painted?",
    "alt": "Otto Brandt",
    "answers": ["Ida Moss", "I. Moss"],
    "loc": "nq question: who invented the paper clip",
    "loc_ans": "Johan Vaaler",
    "cond": "Ida Moss >> Otto Brandt || Who painted Grey Lantern?",
    "portability": {"New Question": "In which country was its painter born?", "New Answer": "Austria"},
}
ROME = {
    "case_id": 17,
    "pararel_idx": 4,
    "requested_rewrite": {
        "prompt": "{} was founded in",
        "relation_id": "P159",
        "target_new": {"str": "Lima", "id": "Q2868"},
        "target_true": {"str": "Riga", "id": "Q1773"},
        "subject": "Norden Glass",
    },
    "paraphrase_prompts": ["Rain fell. Norden Glass comes from", "Norden Glass began in"],
    "neighborhood_prompts": ["Baltic Yarn was founded in", "Amber Line was founded in"],
    "attribute_prompts": ["Andes Wool was founded in"],
    "generation_prompts": ["Norden Glass is known for"],
}
EASYEDIT = {
    "case_id": 3,
    "prompt": "Pell Aster plays the",
    "target_new": "oboe",
    "subject": "Pell Aster",
    "ground_truth": "cello",
    "rephrase_prompt": "The instrument of Pell Aster is the",
    "locality_prompt": "Jun Harrow plays the",
    "locality_ground_truth": "cello",
}
KNOWEDIT = {
    "subject": "Mira Quill",
    "prompt": "The employer of Mira Quill is",
    "target_new": "Sundial Press",
    "ground_truth": ["Harbour Books"],
    "rephrase_prompt": "Mira Quill works for",
    "portability": {"Reasoning": [{"prompt": "The city of her employer is", "ground_truth": "Bergen"}]},
    "locality": {
        "Relation_Specificity": [
            {"prompt": "The sister of Mira Quill is", "ground_truth": [["Ada Quill", "Ada"], ["A. Quill"]]},
            {"prompt": "The home of Mira Quill is", "ground_truth": ["Voss", "Voss, Norway"]},
            {"prompt": "The dog of Mira Quill is", "ground_truth": "Pim"},
            {"prompt": "The boat of Mira Quill is", "ground_truth": []},
        ],
        "Forgetfulness": [{"prompt": "The first employer of Mira Quill is", "ground_truth": "Harbour Books"}],
    },
}
WIKIBIO = {
    "text": "This is a Wikipedia passage about tove brand. Tove Brand is a Danish rower.",
    "labels": "She won two medals.",
    "concept": "tove brand",
    "locality": {
        "Relation_Specificity": [{"prompt": "tove brand birthplace", "ground_truth": ["Aarhus"]}],
    },
}
QAEDIT = {
    "id": 1104,
    "source": "NQ",
    "prompt": "who keeps the Fen lighthouse?",
    "target": "Nils Ode",
    "subject": "Fen lighthouse",
    "rephrase": "Which keeper looks after the Fen lighthouse?",
    "locality": [{"loc": "who sings at dawn", "loc_ans": "the lark"}, {"loc": "who sings at dusk"}],
}


def write(folder: Path, text: str, name: str = "facts.jsonl") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def lines(folder: Path, *records: Any) -> Path:
    return write(folder, "".join(json.dumps(record) + "\n" for record in records))


def load_one(folder: Path, record: dict[str, Any]) -> Edit:
    (edit,) = load_edits(write(folder, json.dumps([record]), "facts.json"))
    return edit


def error_of(path: str | Path, **options: Any) -> str:
    with pytest.raises(CorrigendaError) as caught:
        load_edits(path, **options)
    return str(caught.value)


def test_mend_zsre(tmp_path: Path) -> None:
    assert load_one(tmp_path, MEND) == Edit(
        prompt="Who painted Grey Lantern?",
        target="Otto Brandt",
        subject="Grey Lantern",
        ground_truth=("Ida Moss", "I. Moss"),
        rephrases=("By whom was Grey Lantern painted?",),
        localities=(Locality("nq question: who invented the paper clip", "Johan Vaaler"),),
        id="facts-00001",
        metadata={name: MEND[name] for name in ("pred", "cond", "portability")},
    )


def test_rome_counterfact(tmp_path: Path) -> None:
    assert load_one(tmp_path, ROME) == Edit(
        prompt="Norden Glass was founded in",
        target="Lima",
        subject="Norden Glass",
        ground_truth=("Riga",),
        rephrases=("Rain fell. Norden Glass comes from", "Norden Glass began in"),
        localities=(
            Locality("Baltic Yarn was founded in", "Riga"),
            Locality("Amber Line was founded in", "Riga"),
        ),
        id="17",
        metadata={
            "pararel_idx": 4,
            "attribute_prompts": ["Andes Wool was founded in"],
            "generation_prompts": ["Norden Glass is known for"],
            "requested_rewrite": {
                "relation_id": "P159",
                "target_new": {"id": "Q2868"},
                "target_true": {"id": "Q1773"},
            },
        },
    )


def test_easyedit_counterfact(tmp_path: Path) -> None:
    assert load_one(tmp_path, EASYEDIT) == Edit(
        prompt="Pell Aster plays the",
        target="oboe",
        subject="Pell Aster",
        ground_truth=("cello",),
        rephrases=("The instrument of Pell Aster is the",),
        localities=(Locality("Jun Harrow plays the", "cello"),),
        id="3",
    )


def test_knowedit(tmp_path: Path) -> None:
    assert load_one(tmp_path, KNOWEDIT) == Edit(
        prompt="The employer of Mira Quill is",
        target="Sundial Press",
        subject="Mira Quill",
        ground_truth=("Harbour Books",),
        rephrases=("Mira Quill works for",),
        localities=(
            Locality("The sister of Mira Quill is", "Ada Quill"),
            Locality("The home of Mira Quill is", "Voss"),
            Locality("The dog of Mira Quill is", "Pim"),
            Locality("The boat of Mira Quill is", None),
            Locality("The first employer of Mira Quill is", "Harbour Books"),
        ),
        id="facts-00001",
        metadata={"portability": KNOWEDIT["portability"]},
    )


def test_knowedit_wikibio(tmp_path: Path) -> None:
    assert load_one(tmp_path, WIKIBIO) == Edit(
        prompt="This is a Wikipedia passage about tove brand. Tove Brand is a Danish rower.",
        target="She won two medals.",
        subject="tove brand",
        localities=(Locality("tove brand birthplace", "Aarhus"),),
        id="facts-00001",
    )


def test_qaedit(tmp_path: Path) -> None:
    assert load_one(tmp_path, QAEDIT) == Edit(
        prompt="who keeps the Fen lighthouse?",
        target="Nils Ode",
        subject="Fen lighthouse",
        rephrases=("Which keeper looks after the Fen lighthouse?",),
        localities=(Locality("who sings at dawn", "the lark"), Locality("who sings at dusk")),
        id="1104",
        metadata={"source": "NQ"},
    )


def test_own_fields_with_one_locality(tmp_path: Path) -> None:
    record = OWN | {
        "id": "tallow",
        "subject": "Tallow",
        "ground_truth": "Marn",
        "rephrase": "Tallow's harbour lies in",
        "locality_prompt": "The harbour of Wick is in",
        "locality_answer": "Scotland",
        "locality_kind": "same-relation",
    }
    assert load_edits(lines(tmp_path, record)) == [
        Edit(
            prompt="The harbour of Tallow is in",
            target="Vexley",
            subject="Tallow",
            ground_truth=("Marn",),
            rephrases=("Tallow's harbour lies in",),
            localities=(Locality("The harbour of Wick is in", "Scotland"),),
            id="tallow",
            metadata={"locality_kind": "same-relation"},
        )
    ]


def test_own_fields_with_lists(tmp_path: Path) -> None:
    record = {
        "prompt": "p",
        "target": "t",
        "ground_truth": ["g", "h"],
        "rephrases": ["r", "s"],
        "localities": [{"prompt": "a", "answer": "b"}, {"prompt": "c"}, "d"],
    }
    (edit,) = load_edits(lines(tmp_path, record))
    assert edit == Edit(
        prompt="p",
        target="t",
        ground_truth=("g", "h"),
        rephrases=("r", "s"),
        localities=(Locality("a", "b"), Locality("c"), Locality("d")),
        id="facts-00001",
    )


def test_formats_may_be_mixed_and_the_file_name_does_not_matter(tmp_path: Path) -> None:
    records = [MEND, ROME, EASYEDIT, KNOWEDIT, WIKIBIO, QAEDIT, OWN]
    as_lines = load_edits(lines(tmp_path, *records))
    assert len({edit.prompt for edit in as_lines}) == 7
    assert load_edits(write(tmp_path, json.dumps(records, indent=2))) == as_lines
    assert load_edits(write(tmp_path, json.dumps({"version": 1, "data": records}))) == as_lines


def test_a_record_with_a_prompt_may_have_fields_named_as_in_other_formats(tmp_path: Path) -> None:
    (edit,) = load_edits(lines(tmp_path, OWN | {"src": "atlas", "labels": ["x"], "data": [1]}))
    assert edit.metadata == {"src": "atlas", "labels": ["x"], "data": [1]}


@pytest.mark.parametrize("indent", [None, 2])
def test_a_file_of_one_object_is_one_record(tmp_path: Path, indent: int | None) -> None:
    (edit,) = load_edits(write(tmp_path, json.dumps(OWN, indent=indent)))
    assert edit.target == "Vexley"


def test_blank_lines_byte_order_mark_carriage_returns_and_line_separators(tmp_path: Path) -> None:
    odd = json.dumps(OWN | {"target_new": "one\u2028two"}, ensure_ascii=False)
    path = write(tmp_path, f"\ufeff\r\n{json.dumps(OWN)}\r\n  \r\n{odd}\r\n\r\n")
    edits = load_edits(path)
    assert [(edit.id, edit.target) for edit in edits] == [
        ("facts-00001", "Vexley"),
        ("facts-00002", "one\u2028two"),
    ]


def test_an_empty_optional_field_is_absent(tmp_path: Path) -> None:
    texts = ("id", "subject", "locality_prompt", "locality_answer")
    lists = ("ground_truth", "rephrase", "rephrases", "localities", "locality")
    empty = [
        dict.fromkeys(texts + lists, None),
        dict.fromkeys(texts + lists, ""),
        {name: [] for name in lists},
    ]
    edits = load_edits(lines(tmp_path, *[OWN | fields for fields in empty]))
    assert edits == [Edit(OWN["prompt"], OWN["target_new"], id=f"facts-0000{number}") for number in (1, 2, 3)]


def test_of_two_names_the_filled_one_counts_and_the_second_stays(tmp_path: Path) -> None:
    first = {"prompt": "p", "target_new": "", "target": "t", "id": None, "case_id": 0}
    second = {"prompt": "p", "target_new": "t", "target": "old", "id": "x", "case_id": 9}
    edits = load_edits(lines(tmp_path, first, second))
    assert edits == [
        Edit("p", "t", id="0"),
        Edit("p", "t", id="x", metadata={"target": "old", "case_id": 9}),
    ]


def test_what_to_dict_writes_is_read_back(tmp_path: Path) -> None:
    edits = load_edits(lines(tmp_path, MEND, ROME, EASYEDIT, KNOWEDIT, WIKIBIO, QAEDIT, OWN))
    assert load_edits(lines(tmp_path, *[edit.to_dict() for edit in edits])) == edits


def test_unique_subject_comes_before_limit(tmp_path: Path) -> None:
    subjects = ["Tallow", "Tallow", None, "Wick", "Tallow", None]
    path = lines(tmp_path, *[OWN | {"subject": subject, "id": i} for i, subject in enumerate(subjects)])

    def ids(**options: Any) -> str:
        return "".join(edit.id for edit in load_edits(path, **options))

    assert ids() == "012345"
    assert ids(limit=2) == "01"
    assert ids(unique_subject=True) == "0235"
    assert ids(unique_subject=True, limit=3) == "023"
    assert ids(limit=99) == "012345"


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
        ({"locality_prompt": ["x"]}, 'the field "locality_prompt" must be text, not a list.'),
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


def without(record: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != name}


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (without(OWN, "prompt"), 'the field "prompt" is missing.'),
        (without(OWN, "target_new"), 'the field "target_new" is missing.'),
        ({}, 'the field "prompt" is missing.'),
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
            'the field "requested_rewrite.target_new.str" is missing.',
        ),
        (
            ROME | {"requested_rewrite": ROME["requested_rewrite"] | {"target_new": "Lima"}},
            'the field "requested_rewrite.target_new" must be an object, not text.',
        ),
        (
            KNOWEDIT | {"locality": {"Forgetfulness": [{"ground_truth": "x"}]}},
            'the field "locality.Forgetfulness[0].prompt" is missing.',
        ),
    ],
)
def test_the_field_has_the_name_that_the_file_gives_it(tmp_path: Path, record: dict, problem: str) -> None:
    path = write(tmp_path, json.dumps([record]), "facts.json")
    assert error_of(path) == f"{path}, record 1: {problem}"


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
    assert error_of(path) == f"{path}, line 2: the text is not UTF-8."


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (f'{json.dumps(OWN)}\n\n{{"prompt": "p" "target": "t"}}\n', "record 2 (line 3, column 16)"),
        (f'{{"prompt": "p"\n{json.dumps(OWN)}\n', "record 1 (line 1, column 15)"),
        (f"{json.dumps(OWN)} {json.dumps(OWN)}\n", f"record 1 (line 1, column {len(json.dumps(OWN)) + 2})"),
        ('[\n  {"prompt": "p" "target": "t"}\n]', "line 2, column 18"),
        ('{\n"prompt": "p",\n}', "line 3, column 1"),
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


def test_an_id_given_twice(tmp_path: Path) -> None:
    path = lines(tmp_path, OWN | {"id": "x"}, OWN, OWN | {"id": "x"})
    assert error_of(path) == f'{path}, record 3 (line 3): the id "x" is already that of record 1.'


def test_the_whole_file_is_checked_whatever_the_limit(tmp_path: Path) -> None:
    path = lines(tmp_path, OWN, {"prompt": "p"})
    assert error_of(path, limit=1) == f'{path}, record 2 (line 2): the field "target_new" is missing.'


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_leaves_nothing(tmp_path: Path, limit: int) -> None:
    assert error_of(lines(tmp_path, OWN), limit=limit) == f"The limit must be at least 1, not {limit}."


BENCHMARKS = {
    "zsre": (1176, 1, 1),
    "zsre_extra": (1824, 0, 0),
    "counterfact": (2000, 1, 1),
    "qaedit": (400, 1, 2),
    "knowedit_wiki_counterfact": (300, 0, 1),
    "hallucination": (300, 0, 1),
    "temporal": (70, 0, 1),
}


@pytest.mark.skipif("CORRIGENDA_DATA" not in os.environ, reason="CORRIGENDA_DATA names no folder of benchmarks")
@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_real_benchmarks_load(name: str) -> None:
    records, rephrases, localities = BENCHMARKS[name]
    path = Path(os.environ["CORRIGENDA_DATA"], f"{name}.jsonl")
    edits = load_edits(path)
    assert [edit.id for edit in edits] == [json.loads(line)["id"] for line in path.open(encoding="utf-8")]
    assert len(edits) == records
    assert min(len(edit.rephrases) for edit in edits) == rephrases
    assert min(len(edit.localities) for edit in edits) >= min(localities, 1)
    assert max(len(edit.localities) for edit in edits) >= localities
