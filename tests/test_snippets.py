"""The documentation's commands and programs run and print what it says, or say why they are not run."""

from __future__ import annotations

import re

import pytest
from pages import PAGES, Block, blocks, name_of, run_page
from tree import ROOT

ELSEWHERE = {"docs/quickstart.md": "tests/test_quickstart.py"}
"""Pages whose blocks have a test of their own."""
RUN = [page for page in PAGES if name_of(page) not in ELSEWHERE]
COMMAND = re.compile(r"^\s*(corrigenda|pip|python|make|curl|vllm|git) |^\s*(from \S+ )?import ", re.MULTILINE)


def runs(block: Block) -> bool:
    return block.kind in ("sh", "python") and block.not_run is None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_command_is_in_a_block_that_is_run_or_says_why_not(page):
    for block in blocks(page):
        assert block.kind in ("sh", "python", "text", "json", "") or block.not_run, block.kind
        assert block.kind or not COMMAND.search(block.text), f"no language is named for:\n{block.text}"


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.usefixtures("smollm2")  # which skips where the model is not installed
@pytest.mark.parametrize("page", [page for page in RUN if any(map(runs, blocks(page)))], ids=name_of)
def test_a_page_prints_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(page)


def test_a_wrong_promise_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    page = ROOT / "docs" / "promise.md"
    monkeypatch.setattr(type(page), "read_text", lambda *_, **__: "```python\nprint(2 + 2)\n```\n\n```text\n5\n```\n")
    with pytest.raises(AssertionError, match="promises '5'"):
        run_page(page)
