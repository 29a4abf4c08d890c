"""Kinds of files that people bring, data sets at hand, and those that are refused in one sentence."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from command_line import refused
from edit_files import CUT, FLAT, MEND, OWN, write

from corrigenda.editing.edits.edit import Edit, Locality
from corrigenda.editing.edits.loading import load_edits, read_edits
from corrigenda.editing.errors import CorrigendaError

TABLE = [
    OWN | {"id": "a", "subject": "Tallow", "rephrases": ["Tallow's harbour lies in"]},
    {
        "prompt": "Who wrote “Emma, or\nnot”?",
        "target_new": "J. Austen, 1815",
        "id": "b",
        "localities": [{"prompt": "c"}],
    },
]
MEANT = [
    Edit(OWN["prompt"], "Vexley", subject="Tallow", rephrases=("Tallow's harbour lies in",), id="a"),
    Edit("Who wrote “Emma, or\nnot”?", "J. Austen, 1815", localities=(Locality("c"),), id="b"),
]


def as_table(mark: str = ",", end: str = "\n") -> str:
    rows = [
        ("id", "prompt", "target_new", "subject", "rephrases", "localities"),
        ("a", OWN["prompt"], "Vexley", "Tallow", "Tallow's harbour lies in", ""),
        ("", "", "", "", "", ""),
        ("b", TABLE[1]["prompt"], "J. Austen, 1815", "", "", '[{"prompt": "c"}]'),
    ]
    return "".join(mark.join('"' + cell.replace('"', '""') + '"' for cell in row) + end for row in rows)


def written(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


class TestFiles:
    @pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gz"])
    @pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "bom"])
    @pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
    @pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "tsv", "semicolons.csv"])
    def test_every_kind_of_file(self, tmp_path: Path, kind: str, end: str, mark: str, compress: Any) -> None:
        text = {
            "json": json.dumps(TABLE, indent=1, ensure_ascii=False).replace("\n", end),
            "jsonl": "".join(json.dumps(record, ensure_ascii=False) + end for record in TABLE),
            "csv": as_table(",", end),
            "tsv": as_table("\t", end),
            "semicolons.csv": as_table(";", end),
        }[kind]
        name = f"facts.{kind}" + (".gz" if compress is gzip.compress else "")
        loaded = read_edits(written(tmp_path, name, compress((mark + text).encode())))
        assert list(loaded) == MEANT
        assert loaded.notices == []

    @pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be"])
    def test_utf_16_with_its_mark(self, tmp_path: Path, order: str) -> None:
        text = "\ufeff" + "".join(json.dumps(record, ensure_ascii=False) + "\r\n" for record in TABLE)
        assert list(load_edits(written(tmp_path, "facts.jsonl", text.encode(order)))) == MEANT

    def test_ids_by_number_have_the_name_of_the_file_alone(self, tmp_path: Path) -> None:
        path = written(tmp_path, "train.jsonl.gz", gzip.compress(json.dumps(OWN).encode()))
        assert [edit.id for edit in load_edits(path)] == ["train-00001"]

    def test_cells_of_a_table(self, tmp_path: Path) -> None:
        """A target that looks like a list is a text all the same."""
        text = 'question,answer,rephrase,colour\nWhat is [1] + [2]?,"[1, 2]",[again],red\nWhat?,short\n'
        path = write(tmp_path, text, "facts.csv")
        loaded = read_edits(path)
        assert [(edit.prompt, edit.target, edit.rephrases) for edit in loaded] == [
            ("What is [1] + [2]?", "[1, 2]", ("[again]",)),
            ("What?", "short", ()),
        ]
        assert loaded.notices == [f'{path}: these fields are kept, and say nothing to an edit: "colour".']

    @pytest.mark.parametrize("mark, suffix", [(";", "csv"), ("\t", "csv"), (",", "tsv"), (";", "tsv")])
    def test_a_table_whose_mark_is_not_that_of_its_name(self, tmp_path: Path, mark: str, suffix: str) -> None:
        path = write(
            tmp_path, f"prompt{mark}target\nWho, or what?{mark}Ona\n".replace("Who,", "Who"), f"facts.{suffix}"
        )
        assert [(edit.prompt, edit.target) for edit in load_edits(path)] == [("Who or what?", "Ona")]

    def test_columns_in_capitals(self, tmp_path: Path) -> None:
        path = write(tmp_path, "ID,Prompt, Target ,REPHRASES\nx,Who?,Ona,Who is it?\n", "facts.csv")
        (edit,) = load_edits(path)
        assert (edit.id, edit.prompt, edit.target, edit.rephrases) == ("x", "Who?", "Ona", ("Who is it?",))
        both = read_edits(write(tmp_path, "prompt,Target,target\nWho?,Otto,Ona\n", "both.csv"))
        assert both[0].target == "Ona" and '"Target"' in both.notices[0]

    def test_parquet(self, tmp_path: Path) -> None:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        for name in ("facts.parquet", "facts"):
            parquet.write_table(pyarrow.Table.from_pylist(list(Dataset(TABLE))), tmp_path / name)
            assert list(load_edits(tmp_path / name)) == MEANT

    def test_what_only_a_table_can_hold(self, tmp_path: Path) -> None:
        pyarrow = pytest.importorskip("pyarrow")
        from datetime import date
        from decimal import Decimal

        from pyarrow import parquet

        row = OWN | {"id": 66, "time": date(2026, 11, 29), "price": Decimal("1.50"), "tag": "x"}
        parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "facts.parquet")
        (edit,) = load_edits(tmp_path / "facts.parquet")
        assert edit.id == "66"
        assert edit.metadata == {"time": "2026-11-29", "price": "1.50", "tag": "x"}
        parquet.write_table(pyarrow.Table.from_pylist([OWN | {"tag": b"x"}]), tmp_path / "bytes.parquet")
        with pytest.raises(CorrigendaError, match=r'the field "tag" is bytes, which cannot be stored\.$'):
            load_edits(tmp_path / "bytes.parquet")


class Dataset:
    """What is used of a `datasets.Dataset`: rows as dicts, in which a column that a row lacks is None."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.columns = dict.fromkeys(name for row in rows for name in row)
        self.rows = rows

    def __iter__(self):
        return ({name: row.get(name) for name in self.columns} for row in self.rows)


class TestRecordsAtHand:
    @pytest.mark.parametrize("given", [list, iter, Dataset])
    def test_records_instead_of_a_file(self, given: Any) -> None:
        assert list(load_edits(given(TABLE))) == MEANT
        assert [edit.id for edit in load_edits(given([OWN, OWN]))] == ["record-00001", "record-00002"]
        assert len(load_edits(given(TABLE), limit=1)) == 1

    def test_a_real_dataset(self) -> None:
        datasets = pytest.importorskip("datasets")
        rows = datasets.Dataset.from_list(list(Dataset(TABLE)))
        assert list(load_edits(rows)) == MEANT
        with pytest.raises(CorrigendaError, match=r'give one of its parts \("train"\)\.$'):
            load_edits(datasets.DatasetDict({"train": rows}))

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"train": TABLE}, 'The records must be a list, not an object: give one of its parts ("train").'),
            ([], "the list of records holds no records."),
            ([OWN, "x"], "the list of records, record 2: a record must be an object, not text."),
            ([OWN | {"prompt": 3}], 'the list of records, record 1: the field "prompt" must be text, not a number.'),
        ],
    )
    def test_what_is_no_list_of_records(self, given: Any, message: str) -> None:
        with pytest.raises(CorrigendaError) as caught:
            load_edits(given)
        assert str(caught.value) == message


FORM = (
    '"requested_rewrite" (CounterFact, MQuAKE), "prompt" (our own, EasyEdit, KnowEdit, QAEdit), "src" (ZsRE of MEND), '
    '"update" (WikiBigEdit), "text" (WikiBio), "K_F" (Sanitation), "ent" (ConvSent) or "question" (UnKE).'
)


class TestRefused:
    """Wrong files: one sentence, exit status 2, nothing written."""

    @pytest.mark.parametrize(
        ("name", "content", "problem"),
        [
            (
                "f.jsonl",
                {"frage": "x", "antwort": "y"},
                f', record 1 (line 1): the form is unknown, for it has "frage", "antwort" and none of {FORM}',
            ),
            ("f.json", [{}], f", record 1: the form is unknown, for it has no field and none of {FORM}"),
            ("f.jsonl", MEND | {"alt": ""}, " holds no edits: every record has an empty target."),
            ("f.jsonl", MEND | {"alt": 7}, ', record 1 (line 1): the field "alt" must be text, not a number.'),
            ("f.jsonl", FLAT | {"target": {"id": "Q1"}}, ', record 1 (line 1): the field "target.str" is missing.'),
            (
                "f.jsonl",
                OWN | {"id": "x" * 257},
                ', record 1 (line 1): the field "id" has 257 characters, more than 256.',
            ),
            ("f.jsonl", {"question": "q", "answers": ["a"]}, ', record 1 (line 1): the field "answer" is missing.'),
            ("f.json", {"K_F": [], "K_R": []}, ', record 1 (line 1): the field "K_F" holds no edits.'),
            ("f.json", {"K_F": ["x"]}, ', record 1 (line 1): the field "K_F[0]" must be an object, not text.'),
            ("f.json", {"K_F": [{"question": "q"}]}, ', record 1 (line 1): the field "K_F[0].answer" is missing.'),
            (
                "f.json",
                {"ent": "x", "pos": ["a"], "neg": ["b"]},
                ', record 1 (line 1): the field "pos" and "neg" are both there, '
                "and an edit is to one of them: leave the other out.",
            ),
            ("f.json", {"ent": "x", "pos": []}, ', record 1 (line 1): the field "pos" is missing.'),
            (
                "f.json",
                [{"requested_rewrite": [3]}],
                ', record 1: the field "requested_rewrite[0]" must be an object, not a number.',
            ),
            (
                "f.csv",
                b"prompt,target\na,b,c\n",
                ', line 2: the row has 3 cells for 2 columns: put quotes around a cell that holds ",".',
            ),
            ("f.csv", b'prompt,target\na,"b\n', ", line 2: the table is broken (unexpected end of data)."),
            ("f.csv", b"prompt,target,prompt\n", ': two columns are named "prompt".'),
            ("f.csv", b"prompt,target\n", " holds no records."),
            ("f.csv", b"", " holds no records."),
            ("f.csv", b"prompt;target\na;\n", ', record 1 (line 2): the field "target" is missing.'),
            (
                "f.csv",
                "prompt,target\nMalmö,x\n".encode("latin-1"),
                ", line 2: the text is not UTF-8: save it in that encoding, or convert it (iconv -f CP1252 -t UTF-8, "
                "say).",
            ),
            ("f.jsonl.gz", CUT, " is compressed, and its end is missing or damaged."),
            ("f.jsonl", b"\xff\xfe\x00", ", line 1: the text is not UTF-16."),
            ("f.parquet", b"PAR1 no more", " is a Parquet file that is damaged or cut short."),
        ],
    )
    def test_in_one_sentence(self, tmp_path: Path, name: str, content: Any, problem: str) -> None:
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        path = written(tmp_path, name, content)
        out = tmp_path / "out"
        message = refused("edit", "--model", "smollm2", "--edits", path, "--out", out)

        assert message == f"{path}{problem}"
        assert not out.exists()

    def test_parquet_without_its_reader(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
        path = written(tmp_path, "facts.parquet", b"PAR1")
        message = refused("edit", "--model", "smollm2", "--edits", path, "--out", tmp_path / "out")
        assert message == f"{path} is a Parquet file, which pyarrow reads: run `pip install 'corrigenda[parquet]'`."
