"""Standard input and output in the place of files, on the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from command_line import RECORDS, TEMPLATE, corrigenda, given, refused, works, write_records
from tiny import save_tiny

from corrigenda.editing import CorrigendaError, load_edits
from corrigenda.editing.cli.inputs import read_prompts
from corrigenda.editing.model import saving

LINES = "".join(json.dumps(record) + "\n" for record in RECORDS)

pytestmark = pytest.mark.usefixtures("few_background_prompts")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


def test_edits_and_prompts_from_standard_input(tiny, tmp_path) -> None:
    options = ("--model", tiny, "--steps", 3, "--template", TEMPLATE)
    nameless = json.dumps({"prompt": "Who leads Vantrello Foods?", "target": "Ines Okafor"})
    assert given(f"{LINES}{nameless}\n", "edit", *options, "--edits", "-", "--out", tmp_path / "edits").exit_code == 0
    assert [edit.id for edit in saving.read(tmp_path / "edits").edits] == ["capital", "author", "bridge", "stdin-00004"]
    resumed = given(LINES, "edit", *options, "--edits", "-", "--out", tmp_path / "edits", "--resume")
    assert "3 of 3 edits were recorded before." in resumed.output
    asked = ("--model", tiny, "--edits-dir", tmp_path / "edits")
    for text in (RECORDS[0]["prompt"] + "\n", LINES):
        answered = given(text, "generate", *asked, "--prompts", "-")
        assert answered.exit_code == 0 and "[capital]" in answered.output
    scored = given(LINES, "eval", *asked, "--edits", "-", "--json", tmp_path / "scores.json")
    assert scored.exit_code == 0 and json.loads((tmp_path / "scores.json").read_text())["routed"] == 1


def test_edits_to_standard_output_and_in_again(tiny, tmp_path) -> None:
    file = write_records(tmp_path / "facts.jsonl", *RECORDS)
    options = ("--model", tiny, "--steps", 3, "--template", TEMPLATE)
    works("edit", *options, "--edits", file, "--out", tmp_path / "one")
    lines = corrigenda("export", tmp_path / "one", "-").stdout
    assert [json.loads(line)["id"] for line in lines.splitlines()] == ["capital", "author", "bridge"]
    assert given(lines, "edit", *options, "--edits", "-", "--out", tmp_path / "two").exit_code == 0
    assert works("diff", tmp_path / "one", tmp_path / "two") == "The edits in effect are the same.\n"
    assert not Path("-").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "standard input holds no records."),
        (
            b'{"prompt": "p", "target": "t"}\n{"prompt": "q",\n',
            "standard input, record 2 (line 2, column 16): the JSON",
        ),
        (b'{"prompt": "p", "target": ""}\n', 'standard input, record 1 (line 1): the field "target" is empty.'),
        (b'[{"prompt": "p",\n "target" "t"}]', "standard input, line 2, column 11: the JSON is broken"),
        (
            b'{"prompt": "\xff"}\n',
            "standard input, line 1: the text is not UTF-8: save it in that encoding, or convert it",
        ),
    ],
)
def test_what_comes_in_is_named_where_it_is_wrong(text, words, tmp_path) -> None:
    done = given(text, "edit", "--model", "smollm2", "--edits", "-", "--out", tmp_path / "edits")
    assert done.exit_code == 2 and done.stderr.startswith(f"Error: {words}"), done.output
    assert not (tmp_path / "edits").exists()


def test_no_prompts_and_no_standard_input(monkeypatch) -> None:
    done = given("\n", "generate", "--model", "smollm2", "--prompts", "-")
    assert done.stderr == "Error: standard input holds no prompts.\n"
    monkeypatch.setattr("sys.stdin", None)
    for read in (load_edits, read_prompts):
        with pytest.raises(CorrigendaError, match=r"^Standard input is closed: .*\.$"):
            read(Path("-"))


def test_standard_input_cannot_hold_edits_and_answers(tmp_path) -> None:
    message = refused("edit", "--model", "m", "--edits", "-", "--out", tmp_path / "edits", "--on-conflict", "ask")
    assert "standard input, which holds the edits here" in message


def test_brackets_in_names_mean_nothing(tiny, tmp_path) -> None:
    """The screen's own markup is written in brackets, and a tag that closes nothing is an error there."""
    odd = tmp_path / "a[/b]c[red]d"
    odd.mkdir(parents=True)
    file = write_records(odd / "facts[bold].jsonl", {**RECORDS[0], "id": "[/x] capital[red]"})
    options = ("--model", tiny, "--edits", file, "--steps", 3, "--template", TEMPLATE)
    assert f"saved in {odd / 'out'}." in works("edit", *options, "--out", odd / "out", "--json", odd / "[s].json")
    assert f"are not in effect in {odd / 'out'}." in works(
        "eval", "--model", tiny, "--edits-dir", odd / "out", "--edits", write_records(odd / "two", *RECORDS[:2])
    )
    asked = ("--model", tiny, "--edits-dir", odd / "out", "--prompts", file)
    assert "[[/x] capital[red]]" in works("generate", *asked, "--provenance")
    assert str(odd / "answers.json") in works("generate", *asked, "--json", odd / "answers.json")
    assert 'Edit "[/x] capital[red]" applies' in works("why", odd / "out", RECORDS[0]["prompt"])
    for command in (("log",), ("export", odd / "[e].jsonl"), ("undo", "[/x] capital[red]"), ("compact",), ("verify",)):
        works(command[0], odd / "out", *command[1:])
    assert '"[/model]" could not be loaded' in refused("generate", "--model", "[/model]", "--prompts", file)


@pytest.mark.parametrize("name", ["-", "pipe"])
def test_a_result_takes_the_place_of_no_device(name, tmp_path, monkeypatch) -> None:
    """A file is written beside its place and moved there: a device of that name would be gone."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    message = refused("generate", "--model", "m", "--prompts", "absent", "--json", name)
    assert message == f'The result is written to a plain file, not to "{name}": name a new one.'
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
