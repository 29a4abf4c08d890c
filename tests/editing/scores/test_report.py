"""What stands beside scores in a result."""

import subprocess

import pytest
from tree import ROOT

from corrigenda.editing.scores.report import commit


def test_a_checkout_names_its_commit():
    asked = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    if asked.returncode:
        pytest.skip("not a git checkout")
    assert commit() == asked.stdout.strip()
