"""The command line: wrong inputs are one sentence, and a tiny model goes through every command."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import pytest
from command_line import RECORDS, TEMPLATE, corrigenda, refused, strict_json, works, write_records
from tiny import save_tiny

from corrigenda.editing.cli import demo
from corrigenda.editing.cli.inputs import read_prompts
from corrigenda.editing.errors import CorrigendaError
from corrigenda.editing.methods.associative.method import Associative
from corrigenda.editing.model import saving
from corrigenda.editing.model.edited_model import EditedModel
from corrigenda.editing.scores import report
from corrigenda.kernels import dispatch

KEYS = {"n", "method", "rel", "gen", "loc", "free_rel", "free_gen", "seconds", "edits_per_second"}
KEYS |= {"settings", "versions", "commit", "routed", "routed_gen", "misfires"}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def facts(tmp_path):
    return write_records(tmp_path / "facts.jsonl", *RECORDS)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A folder in which three edits were written, saved in `edits` and scored in `scores.json`."""
    folder = tmp_path_factory.mktemp("run")
    write_records(folder / "facts.jsonl", *RECORDS)
    arguments = ("--model", tiny, "--edits", folder / "facts.jsonl", "--out", folder / "edits", "--batch-size", 2)
    arguments += ("--template", TEMPLATE, "--evaluate", "--score-each", "--json", folder / "scores.json")
    folder.joinpath("screen.txt").write_text(works("edit", *arguments), encoding="utf-8")
    return folder


class TestWrongInputs:
    def test_missing_file(self, tmp_path) -> None:
        missing = tmp_path / "none.jsonl"
        message = refused("edit", "--model", "smollm2", "--edits", missing, "--out", tmp_path / "out")
        assert message == f"There is no file {missing}."

    def test_broken_json_line(self, tmp_path) -> None:
        file = tmp_path / "broken.jsonl"
        file.write_text('{"prompt": "a", "target": "b"}\n{"prompt": "c", \n', encoding="utf-8")
        message = refused("edit", "--model", "smollm2", "--edits", file, "--out", tmp_path / "out")
        assert f"{file}, record 2 (line 2" in message

    def test_empty_target(self, tmp_path) -> None:
        file = write_records(tmp_path / "empty.jsonl", {"prompt": "a", "target": " "})
        message = refused("edit", "--model", "smollm2", "--edits", file, "--out", tmp_path / "out")
        assert '"target_new" is empty' in message or '"target" is empty' in message

    def test_non_empty_out_before_anything_is_read(self, tmp_path) -> None:
        (tmp_path / "note").touch()
        message = refused("edit", "--model", "smollm2", "--edits", "none", "--out", tmp_path)
        assert message.startswith(f"The folder {tmp_path} is not empty")

    def test_out_below_a_file(self, tmp_path) -> None:
        (tmp_path / "note").touch()
        message = refused("edit", "--model", "smollm2", "--edits", "none", "--out", tmp_path / "note" / "out")
        assert message.endswith("note is a file.")

    @pytest.mark.parametrize(
        ("option", "value", "part"),
        [
            ("--method", "magic", 'Unknown editing method "magic": use one of associative, memoir, wise-merge'),
            ("--template", "Question:", 'must contain "{prompt}" once'),
            ("--threshold", "high", 'not "high"'),
            ("--threshold", "1.5", "a number from 0 to 1"),
            ("--batch-size", "0", "`batch_size` must be a whole number above 0"),
            ("--steps", "0", "`steps` must be a whole number above 0"),
            ("--set", "gian=1.5", "perhaps `gain` is meant"),
            ("--set", "gain=0.5", "`gain` must be a number from 1 on"),
            ("--set", "seed=abc", "`seed` must be a whole number"),
            ("--limit", "0", "The limit must be at least 1"),
            ("--threads", "0", "threads must be at least 1"),
            ("--json", "/nowhere/at/all.json", "there is no folder /nowhere/at"),
            ("--json", "/tmp", "/tmp is a folder"),
            ("--model", "/nowhere/model", 'The model "/nowhere/model"'),
            ("--model", "/nowhere/model.gguf", '"/nowhere/model.gguf" does not exist'),
        ],
    )
    def test_wrong_option(self, option, value, part, tiny, facts, tmp_path) -> None:
        arguments = {"--model": tiny, "--edits": facts, "--out": tmp_path / "out", option: value}
        message = refused("edit", *(text for pair in arguments.items() for text in pair))
        assert part in message
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("option", "value", "part"),
        [
            ("--layer", 9, "Layer 9 is out of range: this model has layers 0 to 3"),
            ("--dtype", "int3", 'Unknown dtype "int3"'),
            ("--device", "moon", 'The device "moon" cannot be used: '),
        ],
    )
    def test_what_the_model_decides(self, option, value, part, tiny, facts, tmp_path) -> None:
        message = refused("edit", "--model", tiny, "--edits", facts, "--out", tmp_path / "out", option, value)
        assert part in message

    def test_folder_without_edits(self, facts, tmp_path) -> None:
        message = refused("eval", "--model", "smollm2", "--edits-dir", tmp_path / "none", "--edits", facts)
        assert "none" in message
        message = refused("generate", "--model", "smollm2", "--edits-dir", tmp_path, "--prompts", facts)
        assert "holds no saved edits" in message

    def test_prompt_longer_than_the_context(self, tiny, tmp_path) -> None:
        (tmp_path / "long.txt").write_text("short\n" + "why " * 600, encoding="utf-8")
        message = refused("generate", "--model", tiny, "--prompts", tmp_path / "long.txt")
        assert message.startswith("Prompt 2 has ")

    def test_edits_of_another_model(self, run, tmp_path) -> None:
        other = save_tiny(tmp_path / "other", seed=1)
        message = refused("generate", "--model", other, "--edits-dir", run / "edits", "--prompts", run / "facts.jsonl")
        assert "are for another model" in message

    def test_earlier_work_is_not_overwritten(self, run, tmp_path) -> None:
        message = refused("demo", "--out", run / "edits")
        assert "is not empty" in message
        (tmp_path / "note").touch()
        message = refused("demo", "--out", tmp_path, "--overwrite")
        assert "is not overwritten" in message
        assert (tmp_path / "note").exists()

    def test_unknown_option_is_a_usage_error(self) -> None:
        assert corrigenda("edit", "--colour", "red").exit_code == 2


class TestEdit:
    def test_result_has_every_key(self, run) -> None:
        result = strict_json(run / "scores.json")
        assert set(result) >= KEYS
        assert (result["n"], result["method"], result["timed"]) == (3, "associative", "writing")
        assert result["rel"] == result["free_rel"] == result["routed"] == result["free_gen"] == 1
        assert result["loc"] == 1
        assert result["seconds"] > 0
        assert result["edits_per_second"] == pytest.approx(3 / result["seconds"], rel=0.01)
        assert set(result["immediate"]) >= {"rel", "gen", "loc", "free_rel", "free_gen"}
        assert result["settings"]["batch_size"] == 2
        assert result["settings"]["template"] == "Question: {prompt}\nAnswer:"
        assert set(result["versions"]) >= {"corrigenda", "python", "torch", "transformers"}
        assert result["commit"] == report.commit()

    def test_saved_folder_and_screen(self, run) -> None:
        assert [edit.id for edit in saving.read(run / "edits").edits] == ["capital", "author", "bridge"]
        screen = (run / "screen.txt").read_text(encoding="utf-8")
        assert "edits/s" in screen
        assert "After 3 edits" in screen

    def test_json_may_go_into_the_new_folder(self, tiny, facts, tmp_path) -> None:
        out = tmp_path / "out"
        arguments = (
            "--model",
            tiny,
            "--edits",
            facts,
            "--limit",
            1,
            "--method",
            "memoir",
            "--steps",
            2,
            "--threads",
            1,
        )
        ended = corrigenda("edit", *arguments, "--no-eos", "--layer", 1, "--out", out, "--json", out / "scores.json")
        assert ended.exit_code == 3, ended.output  # two steps are too few for it to hold
        assert ended.stdout.splitlines()[-1] == "Of 1 edit, none holds; not capital."
        result = strict_json(out / "scores.json")
        assert (result["held"], result["unsolved"], result["failing"]) == (0, [], ["capital"])
        assert (result["n"], result["method"], result["rel"]) == (1, "memoir", None)
        assert result["settings"] | {"layer": 1, "steps": 2, "eos": False, "limit": 1} == result["settings"]
        assert len(saving.read(out).edits) == 1

    def test_an_edit_that_cannot_be_taken(self, tiny, tmp_path) -> None:
        records = [*RECORDS[:2], {"id": "endless", "prompt": "What is endless?", "target": "on " * 600}]
        file, out = write_records(tmp_path / "mixed.jsonl", *records), tmp_path / "out"
        message = refused("edit", "--model", tiny, "--edits", file, "--out", out, "--batch-size", 1)
        assert "endless" in message
        assert [edit.id for edit in saving.read(out).edits] == ["capital", "author"]

    def test_nothing_is_saved_where_nothing_was_written(self, tiny, tmp_path) -> None:
        file = write_records(tmp_path / "endless.jsonl", {"prompt": "What is endless?", "target": "on " * 600})
        refused("edit", "--model", tiny, "--edits", file, "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_interrupt_saves_whole_batches(self, tiny, facts, tmp_path, monkeypatch) -> None:
        def interrupted(method):
            def wrapped(*given, **options):
                signal.raise_signal(signal.SIGINT)
                return method(*given, **options)

            return wrapped

        # A shell starts background jobs with SIGINT ignored; a terminal's program does not.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)

        monkeypatch.setattr(Associative, "solve", interrupted(Associative.solve))
        arguments = ("--model", tiny, "--edits", facts, "--out", tmp_path / "out", "--batch-size", 1)
        result = corrigenda("edit", *arguments)
        assert result.exit_code == 130
        assert "The stream ended after 1 of 3 edits; what was written is saved in" in result.output
        assert len(saving.read(tmp_path / "out").edits) == 1
        # The last batch too, and a stream that was written before: what comes after it is not begun.
        again = [*arguments[:-2], "--resume", "--evaluate"]
        for _ in range(2):
            result = corrigenda("edit", *again)
            assert result.exit_code == 130 and "The stream ended after 1 of 3 edits" in result.output
        assert len(saving.read(tmp_path / "out").edits) == 3
        monkeypatch.setattr(EditedModel, "edit", interrupted(EditedModel.edit))
        result = corrigenda("edit", *again)
        assert result.exit_code == 130 and "3 of 3 edits were recorded before." in result.output
        assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


class TestEval:
    def test_scores_as_right_after_writing(self, run, tiny) -> None:
        file = run / "again.json"
        works("eval", "--model", tiny, "--edits-dir", run / "edits", "--edits", run / "facts.jsonl", "--json", file)
        result, before = strict_json(file), strict_json(run / "scores.json")
        assert set(result) >= KEYS
        assert result["timed"] == "scoring"
        for name in ("n", "rel", "gen", "loc", "free_rel", "free_gen", "routed", "routed_gen", "misfires"):
            assert result[name] == before[name], name

    def test_edits_that_are_not_stored(self, run, tiny, tmp_path) -> None:
        nameless = [{key: value for key, value in record.items() if key != "id"} for record in RECORDS[:1]]
        unknown = {"prompt": "Who is the queen of Torvik?", "target": "Nobody"}
        file = write_records(tmp_path / "others.jsonl", *nameless, unknown)
        screen = works(
            "eval", "--model", tiny, "--edits-dir", run / "edits", "--edits", file, "--json", tmp_path / "r.json"
        )
        assert "1 of 2 edits of the file are not in effect in" in screen.replace("\n", " ")
        assert strict_json(tmp_path / "r.json")["routed"] == 0.5


class TestGenerate:
    def test_with_edits(self, run, tiny, tmp_path) -> None:
        prompts = tmp_path / "prompts.txt"
        prompts.write_text("Zubrovia has which capital?\n\nWhat do cows drink?\n", encoding="utf-8")
        options = ("--model", tiny, "--edits-dir", run / "edits", "--max-new-tokens", 8)
        works("generate", *options, "--prompts", prompts, "--json", tmp_path / "answers.json")
        first, second = strict_json(tmp_path / "answers.json")
        assert first == {"prompt": "Zubrovia has which capital?", "text": "Lutz", "edit": "capital"}
        assert (second["prompt"], second["edit"]) == ("What do cows drink?", None)
        works("generate", *options, "--prompts", prompts, "--template", TEMPLATE, "--json", tmp_path / "same.json")
        assert strict_json(tmp_path / "same.json") == [first, second]
        wrapped = write_records(
            tmp_path / "wrapped.jsonl", {"prompt": "Question: Zubrovia has which capital?\nAnswer:"}
        )
        screen = works("generate", *options, "--prompts", wrapped, "--template", "{prompt}")
        assert "Lutz  [capital]" in screen

    def test_without_edits(self, tiny, facts, tmp_path) -> None:
        arguments = ("--model", tiny, "--prompts", facts, "--max-new-tokens", 4, "--json", tmp_path / "answers.json")
        works("generate", *arguments)
        answers = strict_json(tmp_path / "answers.json")
        assert [answer["prompt"] for answer in answers] == [record["prompt"] for record in RECORDS]
        assert all(answer["edit"] is None for answer in answers)

    @pytest.mark.parametrize(
        ("name", "text", "found"),
        [
            ("a.txt", "one\r\n\n  two\n", ["one", "  two"]),
            ("a.txt", "{name} is\nso\n", ["{name} is", "so"]),
            ("a.txt", '{"prompt": "one"}\n{"prompt": "two", "target": "x"}\n', ["one", "two"]),
            ("a.json", '[{"prompt": "one"},\n {"prompt": "two"}]', ["one", "two"]),
        ],
    )
    def test_prompt_files(self, name, text, found, tmp_path) -> None:
        (tmp_path / name).write_bytes(text.encode())
        assert read_prompts(tmp_path / name) == found

    @pytest.mark.parametrize(
        ("text", "part"),
        [
            ("\n", "holds no prompts"),
            ("plain\n", "broken"),
            ('{"prompt": 3}', '"prompt" must be text'),
            ("3", "an object"),
            ('{"prompt": "x", "y": ' + "[" * 100_000, r"line 1\): objects or lists are nested"),
            ('{"prompt": "x", "y": ' + "9" * 5_000 + "}", r"line 1\): a number has more"),
        ],
    )
    def test_wrong_prompt_files(self, text, part, tmp_path) -> None:
        for name in ["a.jsonl", "a.txt"] if text.startswith("{") else ["a.jsonl"]:
            (tmp_path / name).write_text(text, encoding="utf-8")
            with pytest.raises(CorrigendaError, match=part):
                read_prompts(tmp_path / name)


class TestDemo:
    def test_before_after_and_reloaded(self, tiny, facts, tmp_path) -> None:
        out = tmp_path / "demo-out"
        arguments = ("demo", "--model", tiny, "--edits", facts, "--out", out, "--threads", 1)
        screen = works(*arguments)
        assert "In other words" in screen
        assert "answers are the same as before the reload" in screen
        assert set(strict_json(out / demo.SCORES_NAME)) >= KEYS
        assert strict_json(out / demo.SCORES_NAME)["free_rel"] == 1
        assert len(saving.read(out).edits) == 3
        demo.check_out(out, overwrite=True)
        with pytest.raises(CorrigendaError, match="is not empty"):
            demo.check_out(out, overwrite=False)
        (out / "README.md").write_text("What I found out with these edits.")
        with pytest.raises(CorrigendaError, match="not an earlier demo's alone"):
            demo.check_out(out, overwrite=True)

    def test_with_memories_that_edits_share(self, tiny, facts, tmp_path) -> None:
        arguments = ("--method", "wise-merge", "--out", tmp_path / "demo-out", "--threads", 1)
        screen = works("demo", "--model", tiny, "--edits", facts, *arguments)
        assert "answers are the same as before the reload" in screen and "Taking one edit out" in screen

    def test_overwrite_replaces_the_folder(self, run, tiny, facts, tmp_path, monkeypatch) -> None:
        out = tmp_path / "demo-out"
        out.mkdir()
        for name in ("ledger.sqlite", "head.json"):
            (out / name).write_bytes((run / "edits" / name).read_bytes())
        monkeypatch.setattr(demo, "reloaded_answers", lambda *arguments: [])
        arguments = ("demo", "--model", tiny, "--edits", facts, "--method", "associative", "--out", out)
        assert "is not overwritten" in refused(*arguments, "--overwrite")  # somebody's edits, not a demo's
        (out / demo.SCORES_NAME).write_text('{"written_by": "corrigenda demo"}')
        message = refused(*arguments, "--overwrite")
        assert re.fullmatch(r"Only 0 of \d+ answers are the same after the reload\.", message)
        assert len(saving.read(out).edits) == 3


class TestReport:
    def test_json_is_whole_or_not_there(self, tmp_path) -> None:
        file = tmp_path / "result.json"
        report.write_json(file, {"text": "é"})
        with pytest.raises(ValueError):
            report.write_json(file, {"bad": float("nan")})
        assert strict_json(file) == {"text": "é"}
        assert list(tmp_path.iterdir()) == [file]


def test_doctor_says_what_is_live_and_why_the_rest_is_not(monkeypatch) -> None:
    missing = dispatch.Row("native", None, lambda device: "it was not built")
    monkeypatch.setitem(dispatch.TABLE, "topk_mask", (missing, *dispatch.TABLE["topk_mask"][1:]))
    screen = works("doctor")
    assert "serving by" in screen and "vLLM" in screen
    for part in ("torch", "transformers", "CPU kernels", "CUDA", "smollm2", "topk_mask", "live"):
        assert part in screen
    assert "native is off: it was not built (topk_mask)." in screen


def test_a_backend_that_cannot_run_is_a_sentence(run, tiny, tmp_path, monkeypatch) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Who runs the mill?\n")
    monkeypatch.setattr(dispatch, "_choice", "tritn")
    asked = "generate", "--model", tiny, "--edits-dir", run / "edits", "--prompts", prompts
    assert refused(*asked).startswith("CORRIGENDA_BACKEND must be one of auto, reference, native, triton, not 'tritn'")
    assert "backend       none: CORRIGENDA_BACKEND" in works("doctor")


def test_the_command_line_is_there_before_torch():
    code = "import sys, corrigenda.editing.cli; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("command", ["edit", "eval", "generate", "demo", "doctor"])
def test_help(command) -> None:
    assert f"Usage: corrigenda {command}" in works(command, "--help")


def test_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "corrigenda.editing.cli", "generate", "--model", "m", "--prompts", "none"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["Error: There is no file none."]
