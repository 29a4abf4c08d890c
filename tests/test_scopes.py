"""Ranges for profilers: named as documented, and nothing where none were asked for."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import AssociativeConfig, CorrigendaError, Edit
from corrigenda.editing import profiling as scopes

pytestmark = pytest.mark.usefixtures("few_background_prompts")


@pytest.fixture
def kind(monkeypatch):
    """Choose a kind of scopes for one test."""

    def choose(name):
        monkeypatch.setenv("CORRIGENDA_SCOPES", name)
        scopes._chosen.cache_clear()

    yield choose
    scopes._chosen.cache_clear()


def test_a_profile_shows_what_edits_do(kind, wrap):
    kind("record_function")
    edited = wrap(tiny_model(), tiny_tokenizer(), AssociativeConfig(contexts=1, router="mask", top_k=40))
    edited.edit(Edit("Who runs the mill?", "Ada"))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        edited.generate_text(["Who runs the mill?"], 2)
    names = {event.key for event in profile.key_averages() if event.key.startswith("edit: ")}
    assert names == {"edit: route", "edit: gather", "edit: residual"}


def test_nvtx_ranges_are_in_a_domain_of_their_own(kind, monkeypatch):
    kind("nvtx")
    opened = []
    nvtx = SimpleNamespace(annotate=lambda name, domain: opened.append((name, domain)))
    monkeypatch.setitem(sys.modules, "nvtx", nvtx)
    scopes.scope("edit: swap")
    assert opened == [("edit: swap", "corrigenda")]


def test_kinds_that_are_not_there(kind, monkeypatch):
    kind("rainbow")
    with pytest.raises(CorrigendaError, match="must be one of off, nvtx, record_function, not 'rainbow'"):
        scopes.scope("edit: route")
    kind("nvtx")
    monkeypatch.setitem(sys.modules, "nvtx", None)
    with pytest.raises(CorrigendaError, match="pip install nvtx"):
        scopes.scope("edit: route")


def test_off_is_one_object_for_all(kind):
    kind("off")
    assert scopes.scope("edit: route") is scopes.scope("edit: residual")
