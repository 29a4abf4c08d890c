"""The documentation's commands and programs run and print what it says, or say why they are not run."""

from __future__ import annotations

import contextlib
import re
import shutil

import pytest
from pages import PAGES, Block, blocks, name_of, run_page, run_shell
from tree import ROOT

ELSEWHERE = {"docs/quickstart.md": "tests/test_quickstart.py"}
"""Pages whose blocks have a test of their own."""
RUN = [page for page in PAGES if name_of(page) not in ELSEWHERE]
WITH_EDITS = ("docs/routing.md", "docs/scale.md")
"""Pages that go on with the edits of the first hour."""
COMMAND = re.compile(r"^\s*(corrigenda|pip|python|make|curl|vllm|git) |^\s*(from \S+ )?import ", re.MULTILINE)


def runs(block: Block) -> bool:
    return block.kind in ("sh", "python") and block.not_run is None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_command_is_in_a_block_that_is_run_or_says_why_not(page):
    for block in blocks(page):
        assert block.kind in ("sh", "python", "text", "json", "") or block.not_run, block.kind
        assert block.kind or not COMMAND.search(block.text), f"no language is named for:\n{block.text}"


@pytest.fixture(scope="module")
def first_hour(tmp_path_factory, smollm2):
    """A folder in which the first hour's file of facts was written into the model."""
    (block,) = [one for one in blocks(ROOT / "docs" / "quickstart.md") if "cat > facts.csv" in one.text]
    folder = tmp_path_factory.mktemp("first-hour")
    with contextlib.chdir(folder):
        run_shell(block.text.replace(" --evaluate", ""))
    return folder


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.usefixtures("smollm2")  # which skips where the model is not installed
@pytest.mark.parametrize("page", [page for page in RUN if any(map(runs, blocks(page)))], ids=name_of)
def test_a_page_prints_what_it_says(page, tmp_path, monkeypatch, request):
    if name_of(page) in WITH_EDITS:
        shutil.copytree(request.getfixturevalue("first_hour"), tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    run_page(page)


def test_a_wrong_promise_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    page = ROOT / "docs" / "promise.md"
    monkeypatch.setattr(type(page), "read_text", lambda *_, **__: "```python\nprint(2 + 2)\n```\n\n```text\n5\n```\n")
    with pytest.raises(AssertionError, match="promises '5'"):
        run_page(page)
