"""Loading edits: each published format, and JSON Lines. `test_loading_errors.py` has what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from edit_files import EASYEDIT, KNOWEDIT, MEND, OWN, QAEDIT, ROME, WIKIBIO, lines, load_one, write

from corrigenda.editing.edits.edit import Edit, Locality
from corrigenda.editing.edits.loading import load_edits


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


@pytest.mark.parametrize(
    ("given", "kept"),
    [(["Who built Tallow?", " ", "Where is Tallow?"], ("Who built Tallow?", "Where is Tallow?")), ("Who?", ("Who?",))],
)
@pytest.mark.parametrize("record", [OWN, MEND, ROME, WIKIBIO], ids=["own", "mend", "rome", "wikibio"])
def test_protected_questions_of_any_format(tmp_path: Path, record: dict[str, Any], given: Any, kept: Any) -> None:
    edit = load_one(tmp_path, record | {"protected": given})
    assert edit.protected == kept
    assert "protected" not in edit.metadata


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
