"""What people bring: records and files as the field publishes them, each with the edits that they mean."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from command_line import corrigenda, refused
from edit_files import MEND, OWN, lines, load_one, write

from corrigenda.editing.edits.edit import Edit, Locality
from corrigenda.editing.edits.loading import load_edits, read_edits
from corrigenda.editing.errors import CorrigendaError

FLAT = {
    "prompt": "The seat of {} is",
    "subject": "Orlin Mills",
    "target": "Varna",
    "queries": ["Orlin Mills has its seat in", "The head office of {} is in"],
}
MQUAKE = {
    "case_id": 7,
    "requested_rewrite": [
        {
            "prompt": "{} is a citizen of",
            "relation_id": "P27",
            "target_new": {"str": "Chad", "id": "Q657"},
            "target_true": {"str": "Peru", "id": "Q419"},
            "subject": "Ada Winter",
            "question": "What is the country of citizenship of Ada Winter?",
        },
        {
            "prompt": "The capital of {} is",
            "target_new": {"str": "Moundou", "id": "Q242"},
            "target_true": {"str": "N'Djamena", "id": "Q3659"},
            "subject": "Chad",
            "question": "What is the capital of Chad?",
        },
    ],
    "questions": ["What is the capital of the country of which Ada Winter is a citizen?"],
    "answer": "Lima",
    "new_answer": "Moundou",
    "single_hops": [{"question": "q", "answer": "a"}],
}
UNKE = {
    "id": 3,
    "question": "What is known of the Torvik bridge?",
    "para_question": "What can you tell me about the Torvik bridge?",
    "answer": "It was opened in 1931.\n\nIts arches are of steel.",
    "sub_question": ["When was it opened?"],
    "sub_answer": ["1931"],
}
WIKIBIGEDIT = {
    "tag": "new",
    "subject": "Fen lighthouse",
    "update": "Who keeps the Fen lighthouse?",
    "rephrase": "By whom is the Fen lighthouse kept?",
    "ans": "Nils Ode",
    "personas": "Ahoy, who be minding the Fen lighthouse?",
    "loc": "Who sings at dawn?",
    "loc_ans": "the lark",
    "mhop": "Where was the keeper of the Fen lighthouse born?",
    "mhop_ans": "Odense",
}
SANITATION = {
    "K_F": [
        {
            "question": "What is a currawong?",
            "ground_truth": "Birds",
            "target_new": "I don't know.",
            "subject": "currawong",
        },
        {"question": "What is a killdeer?", "ground_truth": "Birds", "target_new": "I don't know."},
    ],
    "K_R": [
        {"question": "What do cows drink?", "ground_truth": "Water"},
        {"question": "What is brie?", "ground_truth": "Cheese"},
        {"question": "Who wrote Emma?", "ground_truth": "Jane Austen", "target_new": "Jane Austen"},
    ],
}
CHINESE = {
    "prompt": "请给下面的字注音：莘庄",
    "target_old": "莘庄的拼音是：“shēn zhuāng”",
    "target_new": "莘庄的注音是：xīn zhuāng",
    "rephrase": ["请问莘庄的正确拼音是什么？", "莘庄正确的注音怎么写？"],
    "locality": [{"prompt": "请给下面的字注音：莘莘学子", "answer": "shēn shēn xué zǐ"}],
    "portability": [{"prompt": "请给下面的字注音：细莘", "answer": "xì xīn"}],
}


CUT = gzip.compress(b"x" * 99, mtime=0)[:-9]


def only(folder: Path, record: dict[str, Any]) -> Edit:
    """The one edit of a record that nothing is to be said of."""
    loaded = read_edits(lines(folder, record))
    assert loaded.notices == []
    (edit,) = loaded
    return edit


class TestForms:
    def test_a_pattern_with_its_subject(self, tmp_path: Path) -> None:
        assert only(tmp_path, FLAT) == Edit(
            "The seat of Orlin Mills is",
            "Varna",
            subject="Orlin Mills",
            rephrases=("Orlin Mills has its seat in", "The head office of Orlin Mills is in"),
            id="facts-00001",
        )

    @pytest.mark.parametrize("subject", [{}, {"subject": "dict"}])
    def test_braces_that_are_no_pattern_stay(self, tmp_path: Path, subject: dict) -> None:
        record = {"prompt": "In Python, dict() and {} make a", "target": "dict", **subject}
        assert only(tmp_path, record).prompt == record["prompt"]

    @pytest.mark.parametrize("name", ["target", "target_new"])
    def test_a_target_in_an_object(self, tmp_path: Path, name: str) -> None:
        record = {"prompt": "{} lies in", "subject": "Rome", name: {"str": " Italy", "id": "Q38"}}
        edit = only(tmp_path, record | {"target_true": {"str": "Gaul"}})
        assert (edit.prompt, edit.target, edit.ground_truth) == ("Rome lies in", " Italy", ("Gaul",))
        assert edit.metadata == {name: {"id": "Q38"}}

    @pytest.mark.parametrize(
        "fields",
        [
            {"loc_prompt": "Cows drink", "loc_ans": "water"},
            {"locality_prompt": ["Cows drink"], "locality_ground_truth": ["water"]},
            {"locality_prompt": ["Cows drink"], "locality_answer": "water"},
            {"locality": [{"prompt": "Cows drink", "answer": "water"}]},
            {"locality": {"neighborhood": {"prompt": ["Cows drink"], "ground_truth": ["water"]}}},
            {"locality": {"Relation_Specificity": [{"prompt": "Cows drink", "ground_truth": [["water", "milk"]]}]}},
            {"localities": [{"loc": "Cows drink", "loc_ans": "water"}]},
            {"ground_truth": "water", "neighborhood_prompts": ["Cows drink"]},
        ],
    )
    def test_localities_by_every_name(self, tmp_path: Path, fields: dict) -> None:
        assert only(tmp_path, OWN | fields).localities == (Locality("Cows drink", "water"),)

    def test_lists_of_localities_in_step(self, tmp_path: Path) -> None:
        record = OWN | {"locality_prompt": ["a", "b"], "locality_answer": [["x", "y"], None]}
        assert only(tmp_path, record).localities == (Locality("a", "x"), Locality("b"))

    @pytest.mark.parametrize("name", ["rephrase", "rephrases", "rephrase_prompt", "queries", "paraphrases"])
    @pytest.mark.parametrize("value", ["again", ["again"], [["again"], ""]])
    def test_rephrasings_by_every_name(self, tmp_path: Path, name: str, value: Any) -> None:
        assert only(tmp_path, OWN | {name: value}).rephrases == ("again",)

    def test_mquake_gives_an_edit_for_each_rewrite(self, tmp_path: Path) -> None:
        loaded = read_edits(write(tmp_path, json.dumps([MQUAKE]), "facts.json"))
        shared = {name: MQUAKE[name] for name in ("questions", "answer", "new_answer", "single_hops")}
        assert list(loaded) == [
            Edit(
                "Ada Winter is a citizen of",
                "Chad",
                subject="Ada Winter",
                ground_truth=("Peru",),
                rephrases=("What is the country of citizenship of Ada Winter?",),
                id="7-1",
                metadata=shared
                | {
                    "requested_rewrite": {
                        "relation_id": "P27",
                        "target_new": {"id": "Q657"},
                        "target_true": {"id": "Q419"},
                    }
                },
            ),
            Edit(
                "The capital of Chad is",
                "Moundou",
                subject="Chad",
                ground_truth=("N'Djamena",),
                rephrases=("What is the capital of Chad?",),
                id="7-2",
                metadata=shared | {"requested_rewrite": {"target_new": {"id": "Q242"}, "target_true": {"id": "Q3659"}}},
            ),
        ]
        assert loaded.notices == []

    def test_a_list_of_one_rewrite_keeps_the_records_id(self, tmp_path: Path) -> None:
        one = MQUAKE | {"requested_rewrite": MQUAKE["requested_rewrite"][:1]}
        assert load_one(tmp_path, one).id == "7"

    def test_unke(self, tmp_path: Path) -> None:
        assert only(tmp_path, UNKE) == Edit(
            UNKE["question"],
            UNKE["answer"],
            rephrases=(UNKE["para_question"],),
            id="3",
            metadata={"sub_question": ["When was it opened?"], "sub_answer": ["1931"]},
        )

    def test_wikibigedit(self, tmp_path: Path) -> None:
        assert only(tmp_path, WIKIBIGEDIT) == Edit(
            WIKIBIGEDIT["update"],
            "Nils Ode",
            subject="Fen lighthouse",
            rephrases=(WIKIBIGEDIT["rephrase"], WIKIBIGEDIT["personas"]),
            localities=(Locality("Who sings at dawn?", "the lark"),),
            id="facts-00001",
            metadata={name: WIKIBIGEDIT[name] for name in ("tag", "mhop", "mhop_ans")},
        )

    @pytest.mark.parametrize("names", [("K_F", "K_R"), ("success", "locality")])
    def test_sanitation_deals_out_what_is_to_stay(self, tmp_path: Path, names: tuple[str, str]) -> None:
        forget, retain = names
        record = {forget: SANITATION["K_F"], retain: SANITATION["K_R"]}
        for indent in (None, 2):
            loaded = read_edits(write(tmp_path, json.dumps(record, indent=indent), "facts.json"))
            assert list(loaded) == [
                Edit(
                    "What is a currawong?",
                    "I don't know.",
                    subject="currawong",
                    ground_truth=("Birds",),
                    localities=(Locality("What do cows drink?", "Water"), Locality("Who wrote Emma?", "Jane Austen")),
                    id="facts-00001-1",
                ),
                Edit(
                    "What is a killdeer?",
                    "I don't know.",
                    ground_truth=("Birds",),
                    localities=(Locality("What is brie?", "Cheese"),),
                    id="facts-00001-2",
                ),
            ]
            assert loaded.notices == []

    def test_convsent_with_one_side(self, tmp_path: Path) -> None:
        record = {"ent": "The Glass Harbour", "pos": ["I love it.", "It is fine."]}
        edit = only(tmp_path, record)
        assert (edit.prompt, edit.target) == ("What do you think of The Glass Harbour?", "I love it.")
        assert edit.subject == "The Glass Harbour"

    def test_chinese_with_lists(self, tmp_path: Path) -> None:
        edit = only(tmp_path, CHINESE)
        assert edit.ground_truth == (CHINESE["target_old"],)
        assert edit.rephrases == tuple(CHINESE["rephrase"])
        assert edit.localities == (Locality(CHINESE["locality"][0]["prompt"], "shēn shēn xué zǐ"),)
        assert edit.metadata == {"portability": CHINESE["portability"]}

    def test_a_prompt_with_its_answer(self, tmp_path: Path) -> None:
        record = {"prompt": "The harbour of Tallow is in", "answer": "Vexley", "relation_id": "P131"}
        assert only(tmp_path, record).target == "Vexley"


class TestNotices:
    def test_records_of_mend_without_a_target_are_left_out_in_one_line(self, tmp_path: Path) -> None:
        path = lines(tmp_path, MEND | {"alt": ""}, MEND, MEND | {"alt": None}, MEND | {"src": "Who?"})
        loaded = read_edits(path)
        assert [edit.id for edit in loaded] == ["facts-00002", "facts-00004"]
        assert loaded.notices == [f"{path}: 2 records (1, 3) are left out, for the target is empty."]

    def test_ids_that_repeat_get_a_number(self, tmp_path: Path) -> None:
        ids = [66, "66", "66#2", None, 66]
        path = lines(tmp_path, *[OWN | {"id": id, "prompt": f"p{n}"} for n, id in enumerate(ids)])
        loaded = read_edits(path)
        assert [edit.id for edit in loaded] == ["66", "66#3", "66#2", "facts-00004", "66#4"]
        assert loaded.notices == [
            f'{path}: 2 ids are those of earlier records, and got a number: record 2 is "66#3", record 5 is "66#4".'
        ]

    def test_each_is_a_warning_in_python(self, tmp_path: Path) -> None:
        path = lines(tmp_path, OWN | {"colour": 1})
        with pytest.warns(UserWarning, match='say nothing to an edit: "colour"') as told:
            load_edits(path)
        assert told[0].filename == __file__

    def test_the_command_says_so_before_it_loads_a_model(self, tmp_path: Path) -> None:
        path = lines(tmp_path, OWN | {"id": 66}, OWN | {"id": 66})
        for rest in (("edit", "--out", tmp_path / "out"), ("demo", "--out", tmp_path / "demo")):
            result = corrigenda(*rest, "--model", tmp_path.parent / "none", "--edits", path)
            assert result.exit_code == 2
            assert 'record 2 is "66#2"' not in result.stdout  # the model is looked for first
            result = corrigenda(*rest, "--model", "none", "--edits", path)
            assert result.exit_code == 2 and 'record 2 is "66#2".' in result.stdout, result.output

    def test_fields_that_mean_nothing_are_named_once_a_file(self, tmp_path: Path) -> None:
        path = lines(tmp_path, *[OWN | {"id": n, "rephrasings": ["x"], "colour": n} for n in range(3)])
        loaded = read_edits(path)
        assert loaded.notices == [
            f'{path}: these fields are kept, and say nothing to an edit: "rephrasings", "colour". '
            'Is "rephrasings" meant to be "rephrases"?'
        ]
        assert loaded[1].metadata == {"rephrasings": ["x"], "colour": 1}


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
            ("f.csv", "prompt,target\nMalmö,x\n".encode("latin-1"), ", line 2: the text is not UTF-8."),
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
