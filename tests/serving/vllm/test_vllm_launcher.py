"""The command that starts vLLM with edits, without vLLM."""

from __future__ import annotations

import json

import pytest

from corrigenda.editing import CorrigendaError
from corrigenda.serving.vllm import launcher
from corrigenda.serving.vllm.keys import CONFIG


def test_the_launchers_command(monkeypatch, tmp_path, folders):
    monkeypatch.setattr(launcher.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CorrigendaError, match="vLLM is not installed"):
        launcher.command("m", {"edits": "e"})
    monkeypatch.setattr(launcher.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("VLLM_PLUGINS", "mine,corrigenda")
    arguments, environment = launcher.command("m", {"edits": "e"}, ["--port", "1"])
    assert arguments[-2:] == ["--port", "1"] and arguments[arguments.index("--model") + 1] == "m"
    assert json.loads(arguments[arguments.index("--additional-config") + 1]) == {CONFIG: {"edits": "e"}}
    assert environment["VLLM_PLUGINS"] == "mine,corrigenda,corrigenda_edits"
    monkeypatch.setattr(launcher, "packaged_folder", lambda: tmp_path)
    arguments, _ = launcher.command("smollm2", {"edits": "e"}, ["--port", "1"])
    assert arguments[-4:] == ["--served-model-name", "smollm2", "--port", "1"]
    with pytest.raises(CorrigendaError, match="Leave out --additional-config"):
        launcher.command("m", {"edits": "e"}, ["--additional-config={}"])
    with pytest.raises(CorrigendaError, match='no setting "edit"'):
        launcher.command("m", {"edit": "e"})
    started = []
    monkeypatch.setattr(launcher.os, "execve", lambda *given: started.append(given))
    with pytest.raises(CorrigendaError, match="There is no folder"):
        launcher.serve("m", {"edits": str(tmp_path / "none")})
    launcher.serve("m", {"edits": str(folders / "shared")}, ["--port", "1"])
    ((program, given, _),) = started
    assert program == given[0] and given[-2:] == ["--port", "1"]
