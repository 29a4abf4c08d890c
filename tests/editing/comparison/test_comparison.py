"""Methods beside each other: what is asked, the runs, and the page of their results."""

import json
import re
import sys

import pytest
from command_line import corrigenda, refused, write_records
from tiny import save_tiny

from corrigenda.editing import EditedModel
from corrigenda.editing.comparison.plots import SCORES, field_plot
from corrigenda.editing.comparison.results import Result, read_results
from corrigenda.editing.comparison.runs import _streams
from corrigenda.editing.methods.registry import config_for

RECORDS = [
    {
        "id": f"e{number}",
        "prompt": prompt,
        "target": target,
        "subject": subject,
        "rephrases": [f"{prompt} Say it."],
        "localities": [{"prompt": "What do cows drink?", "ground_truth": "Water"}],
        "protected": [f"How old is {subject}?"],
    }
    for number, (prompt, target, subject) in enumerate(
        [
            ("What is the capital of Zubrowka?", "Lutz City", "Zubrowka"),
            ("Who founded the Krellin museum?", "Anna Blom", "the Krellin museum"),
            ("What does Kmelt make?", "red bricks", "Kmelt"),
        ]
    )
]
PLAN = """
model: {model}
edits: facts.jsonl
at: [1, 3]
template: 'Question: {{prompt}}\\nAnswer:'
runs:
  - method: associative
    set: {{contexts: 1}}
  - {{method: rag, name: "retrieval"}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def plan(model, tmp_path):
    write_records(tmp_path / "facts.jsonl", *RECORDS)
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN.format(model=model), encoding="utf-8")
    return path


@pytest.mark.usefixtures("few_background_prompts")
def test_a_comparison_goes_on_and_becomes_a_page(plan, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    done = corrigenda("bench", "--plan", plan, "--out", out)
    assert done.exit_code == 0, done.output
    found = json.loads((out / "associative.json").read_text())
    assert list(found["after"]) == ["1", "3"] and found["complete"] and found["settings"]["contexts"] == 1
    mark = found["after"]["3"]
    assert mark["n"] == 3 and mark["free_rel"] == 1.0 and mark["held"] == 1.0
    assert 0 <= mark["same_subject"] <= 1 and mark["bytes_per_edit"] > 0 and mark["peak_megabytes"] > 0
    assert mark["seconds_per_edit"] > 0 and mark["edits_per_second"] == pytest.approx(1 / mark["seconds_per_edit"])

    # A run that was broken off is run again, one that is whole is not.
    whole = (out / "associative.json").read_bytes()
    broken = json.loads((out / "retrieval.json").read_text())
    (out / "retrieval.json").write_text(json.dumps({**broken, "complete": False}))
    again = corrigenda("bench", "--plan", plan, "--out", out)
    assert "associative is in" in again.output and "retrieval, 3 edits" in again.output
    assert (out / "associative.json").read_bytes() == whole
    assert json.loads((out / "retrieval.json").read_text())["complete"]

    # Another plan's result is not this one's.
    plan.write_text(plan.read_text().replace("contexts: 1", "contexts: 2"))
    assert "associative, 3 edits" in corrigenda("bench", "--plan", plan, "--out", out).output

    hostile = {**json.loads((out / "retrieval.json").read_text()), "name": "<script>alert(1)</script>"}
    (out / "zz.json").write_text(json.dumps(hostile))
    (out / "other.json").write_text('{"unrelated": 1}')
    assert corrigenda("report", out).exit_code == 0
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 2 and "<script" not in page and "&lt;script&gt;alert(1)" in page
    assert not re.search(r"""(src|href)=["']?(http|//)|@import|url\(["']?http""", page), (
        "nothing is loaded from elsewhere"
    )
    for name in ("associative", "retrieval"):
        assert page.count(name) >= 3  # in the plots, the table, the settings
    for _, title in SCORES:
        assert title in page
    assert {path.name for path in out.glob("*.svg")} == {
        "report-facts-model-scores.svg",
        "report-facts-model-costs.svg",
    }


@pytest.mark.usefixtures("few_background_prompts")
def test_a_run_has_numbers_of_its_own_and_need_not_be_told_what_is_protected(plan, tmp_path, monkeypatch):
    told = []

    def edit(self, edits, **options):
        told.extend(edits)
        return write(self, edits, **options)

    write = EditedModel.edit
    monkeypatch.setattr(EditedModel, "edit", edit)
    changed = plan.read_text().replace("contexts: 1}", "contexts: 1}\n    at: [2]")
    plan.write_text(changed + "protected: asked\nscored: 2\n")
    assert corrigenda("bench", "--plan", plan, "--out", tmp_path / "out").exit_code == 0
    found = [json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in ("associative", "retrieval")]
    assert [list(one["after"]) for one in found] == [["2"], ["1", "3"]]
    assert all(0 <= one["after"][count]["same_subject"] <= 1 for one, count in zip(found, "23"))
    assert [one["after"][count]["n"] for one, count in zip(found, "23")] == [2, 2]
    assert len(told) == 5 and not any(one.protected for one in told)
    again = corrigenda("bench", "--plan", plan, "--out", tmp_path / "out").output
    assert "associative is in" in again and "retrieval is in" in again
    plan.write_text(changed)
    assert "retrieval, 3 edits" in corrigenda("bench", "--plan", plan, "--out", tmp_path / "out").output
    assert any(one.protected for one in told)


@pytest.mark.usefixtures("few_background_prompts")
def test_a_run_that_fails_leaves_the_others(model, tmp_path):
    nameless = [{name: value for name, value in record.items() if name != "subject"} for record in RECORDS]
    facts = write_records(tmp_path / "facts.jsonl", *nameless)
    asked = ("--model", model, "--edits", facts, "--at", 1, "--method", "rome", "--method", "rag")
    done = corrigenda("bench", *asked, "--out", tmp_path / "out")
    assert done.exit_code == 1 and "rome ended:" in done.output and "has 1 result;" in done.output
    assert {result.name for (group,) in [read_results(tmp_path / "out").values()] for result in group} == {"rag"}


def test_a_picture_of_many_methods_has_a_row_each_and_only_panels_that_were_measured():
    pytest.importorskip("matplotlib")
    marks = {1: {"free_rel": 1.0, "free_gen": 0.0, "loc": None}, 10: {"free_rel": 0.5, "free_gen": 0.25, "loc": None}}
    results = [Result(name, "rag", "a.jsonl", "m", marks, {}, "") for name in ("first", "second", "third")]
    drawn = field_plot(results)
    assert all(drawn.count(f">{name}<") == 1 for name in ("first", "second", "third"))
    assert "Answers the edit" in drawn and "Leaves others alone" not in drawn
    assert ">1 edit<" in drawn and ">10 edits<" in drawn


@pytest.mark.parametrize(
    "before, after, words",
    [
        ("at: [1, 3]", "at: [3, 1]", "ascending"),
        ("at: [1, 3]", "at: [1, x]", '"at" must be a list of whole numbers'),
        ("at: [1, 3]", "at: 3", '"at" is missing, or not what it should be'),
        ("at: [1, 3]", "at: [1, 4]", "has 3 edits of different subjects, not 4"),
        ("method: rag", "method: rag, at: [2, 1]", "ascending"),
        ("method: rag", "method: rag, at: 2", '"at" must be a list of whole numbers'),
        ("at: [1, 3]", "at: [1, 3]\nprotected: none", '"protected" must be one of told, asked'),
        ("at: [1, 3]", "at: [1, 3]\nscored: 0", '"scored" must be a whole number'),
        ("method: rag", "method: rug", '"rug"'),
        ("contexts: 1", "contexts: none", "contexts"),
        ("contexts: 1", "context: 1", "context"),
        ('name: "retrieval"', 'name: "../x"', "needs a name that a file can have"),
        ('name: "retrieval"', 'name: "associative"', 'Two runs are called "associative"'),
        ("runs:", "run:", 'unknown field "run"'),
        ("edits: facts.jsonl", "edits: [a]", '"edits" must be the path of a file'),
        ("edits: facts.jsonl", "edits: none.jsonl", "There is no file"),
        ("runs:", "runs: [", "cannot be read as YAML"),
    ],
)
def test_a_plan_that_cannot_be_followed_is_refused_before_anything_runs(plan, tmp_path, before, after, words):
    text = plan.read_text()
    assert before in text
    plan.write_text(text.replace(before, after))
    assert words in refused("bench", "--plan", plan, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_folder_of_results(tmp_path):
    assert "There is no folder" in refused("report", tmp_path / "none")
    assert "holds no results" in refused("report", tmp_path)
    (tmp_path / "a.json").write_text("{")
    assert "cannot be read as JSON" in refused("report", tmp_path)
    assert "nothing to run" in refused("bench", "--out", tmp_path / "out")


def test_without_matplotlib_it_says_how_to_get_it(tmp_path, monkeypatch):
    result = {"method": "rag", "edits": "a.jsonl", "after": {"1": {"free_rel": 1.0}}}
    (tmp_path / "rag.json").write_text(json.dumps(result))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "corrigenda[report]" in refused("report", tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.usefixtures("few_background_prompts")
def test_scores_on_the_way_change_nothing(model, tmp_path):
    """UltraEdit solves a batch together: scored after one edit, the others had been a batch of their own."""
    write_records(tmp_path / "facts.jsonl", *RECORDS)
    found = {}
    for at in ("1 3", "3"):
        out = tmp_path / at.replace(" ", "-")
        options = [option for number in at.split() for option in ("--at", number)]
        asked = ("--model", model, "--edits", tmp_path / "facts.jsonl", "--method", "ultraedit", "--out", out)
        assert corrigenda("bench", *asked, *options).exit_code == 0
        (result,) = read_results(out).popitem()[1]
        found[at] = {name: mark for name, mark in result.after[3].items() if not re.search("second|megabytes", name)}
    assert found["1 3"] == found["3"]


def test_numbers_share_a_stream_where_no_batch_is_cut():
    config = config_for("ultraedit", batch_size=10)
    assert _streams([1, 10, 20, 25, 30], config) == [[1], [10, 20, 25], [30]]
    assert _streams([1, 10, 100], config_for("associative")) == [[1, 10, 100]]
