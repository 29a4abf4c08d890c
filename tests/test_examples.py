"""The examples run, and end with the answers that they promise."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.usefixtures("smollm2")  # which skips where the model is not installed
def test_edits_in_continuous_batching(capsys):
    runpy.run_path(str(EXAMPLES / "serve_transformers.py"), run_name="__main__")
    lines = [line for line in capsys.readouterr().out.splitlines() if "edit: " in line]
    assert [line.split("edit: ")[1].split(",")[0] for line in lines] == [
        *("leader", "None", "None"),
        *("leader", "None", "harbour"),
        *("None", "None", "None"),
    ]
