"""The page for the first hour: its commands run, in order, and print what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from tree import ROOT, copy_tree

BLOCK = re.compile(r"^```(sh|python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.usefixtures("smollm2")  # which skips where the model is not installed
def test_every_command_of_the_page(tmp_path):
    """In a new environment, whose other packages are those of this one: nothing is fetched."""
    pytest.importorskip("peft")
    pytest.importorskip("fastapi")
    folder = copy_tree(tmp_path)
    environment = {
        **os.environ,
        # The last is for machines that have no `python` but `python3`.
        "PATH": f"{folder / 'env' / 'bin'}:{os.environ['PATH']}:{Path(sys.executable).parent}",
        "PYTHONPATH": sysconfig.get_path("purelib"),
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # which is how pip spells "without"
        "CORRIGENDA_BUILD": "none",
        "HF_HUB_OFFLINE": "1",
    }
    said = ""
    for kind, text in BLOCK.findall((ROOT / "docs" / "quickstart.md").read_text()):
        if kind == "text":
            for line in text.splitlines():
                assert line in said, said
            continue
        program = ["bash", "-e", "-c", text] if kind == "sh" else ["python", "-c", text]
        done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
        said = done.stdout + done.stderr
        assert done.returncode == 0, f"{text}\n{said}"
    assert (folder / "env" / "bin" / "corrigenda").exists()
    assert Path(folder / "my-lora-edits" / "ledger.sqlite").exists()
