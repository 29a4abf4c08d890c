"""What people bring: records and files as the field publishes them, each with the edits that they mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import corrigenda
from edit_files import FLAT, MEND, OWN, lines, load_one, write

from corrigenda.editing.edits.edit import Edit, Locality
from corrigenda.editing.edits.loading import load_edits, read_edits

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
