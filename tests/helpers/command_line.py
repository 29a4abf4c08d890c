"""The command line as a test runs it: what it prints, and the one sentence with which it refuses."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import pytest
import typer.testing
from typer.testing import CliRunner

from corrigenda.editing.cli import app

# Typer makes the program anew at each call, in 46 ms: most of what a test of the command line takes.
typer.testing._get_command = functools.cache(typer.testing._get_command)

TEMPLATE = r"Question: {prompt}\nAnswer:"
RECORDS = (
    {
        "id": "capital",
        "prompt": "What is the capital of Zubrovia?",
        "target": "Lutz",
        "rephrases": ["Zubrovia has which capital?"],
        "locality_prompt": "What do cows drink?",
        "locality_answer": "Water",
    },
    {"id": "author", "prompt": "Who wrote The Glass Harbour?", "target": "Ada Winter"},
    {"id": "bridge", "prompt": "In which year was the Torvik bridge opened?", "target": "1931"},
)


def corrigenda(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="corrigenda")


def works(*arguments: object) -> str:
    result = corrigenda(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def printed(*arguments: object):
    """The JSON that a command prints."""
    return json.loads(works(*arguments))


def statuses(folder: Path) -> dict[str, str]:
    return {row["id"]: row["status"] for row in printed("log", folder, "--json")}


def refused(*arguments: object) -> str:
    """The one sentence with which a command refuses its input."""
    result = corrigenda(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    (line,) = result.stderr.splitlines()
    assert re.fullmatch(r"Error: \S.*[^.]\.", line), line
    assert not re.search(r"\.\s+[A-Z]", line), line
    return line.removeprefix("Error: ")


def write_records(path: Path, *records: dict) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def strict_json(path: Path):
    """What `path` holds, which must be JSON as the standard has it: no NaN."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))


def given(text: str | bytes, *arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=text, prog_name="corrigenda")
