"""The documentation holds together: its links lead somewhere, its site builds, its reference pages name everything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields

import pytest
from pages import PAGES, name_of
from tree import ROOT

import corrigenda.editing
from corrigenda.editing.methods.config import CONFIGS
from corrigenda.editing.methods.documented import field_texts
from corrigenda.editing.methods.registry import config_for

LINK = re.compile(r"\]\(([^)#\s:]+)(?:#[^)\s]*)?\)")


@pytest.fixture
def made(monkeypatch):
    """The reference pages by their names."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import reference_pages

    return reference_pages.pages()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_link_leads_to_a_file(page):
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    lost = [target for target in targets if "reference/" not in target and not (page.parent / target).exists()]
    assert not lost


def test_the_first_page_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    """Anchors of headings too, which no other test looks at."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site" / "reference" / "settings" / "index.html").exists()


def test_the_page_of_commands_names_each_with_its_options(made):
    text = made["cli.md"]
    assert len(re.findall(r"^## \w+$", text, re.MULTILINE)) >= 20
    assert "## undo" in text and "`--on-conflict`" in text


def test_the_page_of_names_has_all_that_is_public(made):
    headings = re.findall(r"^### (\w+)$", made["python.md"], re.MULTILINE)
    assert set(corrigenda.editing.__all__) <= set(headings)
    assert "#### EditedModel.undo" in made["python.md"]


def test_the_page_of_settings_has_a_row_for_each(made):
    for kind in dict.fromkeys(CONFIGS.values()):
        section = made["settings.md"].partition(f"\n## {kind.__name__}\n")[2].partition("\n## ")[0]
        for field in fields(kind):
            assert re.search(rf"^\| `{field.name}` \| \S.* \| `.+` \| \S.* \|$", section, re.MULTILINE), field.name


@pytest.mark.parametrize("method", CONFIGS)
def test_every_setting_has_its_sentence(method):
    texts = field_texts(type(config_for(method)))
    assert not [name for name, text in texts.items() if not text]
