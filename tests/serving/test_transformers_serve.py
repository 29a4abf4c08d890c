"""`transformers serve` with edits: a real server that answers, changes and refuses."""

from __future__ import annotations

import inspect
import json

import pytest
from huggingface_hub import scan_cache_dir
from running import transformers_server
from served import OF_ACME, SHARED, banned, store
from tiny import save_tiny
from transformers import GenerationConfig

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
httpx = pytest.importorskip("httpx")

from corrigenda.editing import CorrigendaError  # noqa: E402
from corrigenda.editing.cli.app import app as program  # noqa: E402


@pytest.fixture(scope="module")
def folders(few_background_prompts, tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    save_tiny(root / "model")
    store(root / "edits" / "shared", SHARED)
    store(root / "edits" / "acme", OF_ACME)
    store(root / "edits" / "more", OF_ACME[1:])
    return root


@pytest.fixture(scope="module")
def server(folders):
    settings = {
        "edits": folders / "edits" / "shared",
        "tenants": {"acme": folders / "edits" / "acme"},
        "root": folders / "edits",
    }
    with transformers_server(folders / "model", settings) as http:
        yield http


def test_a_model_that_cannot_be_loaded_is_named(folders, tmp_path):
    pytest.importorskip("uvicorn")
    from corrigenda.serving.launcher import launch

    (tmp_path / "empty").mkdir()
    with pytest.raises(CorrigendaError, match=r'^The model ".*empty" could not be loaded: .*; give "smollm2"'):
        launch("transformers", str(tmp_path / "empty"), {"edits": folders / "edits" / "shared"})


def complete(server, question, **headers):
    body = {"prompt": f"Question: {question}\nAnswer:", "max_tokens": 8}
    response = server.post("/v1/completions", json=body, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["text"], response.headers["x-corrigenda-edit"]


@pytest.mark.slow
def test_a_server_answers_by_the_edits_of_each_tenant(server):
    assert complete(server, "Who founded the Krellin museum?") == (" Anna Blom", "b")
    assert complete(server, "Zubrowka has which capital?")[1] == "a"
    text, edit = complete(server, "Zubrowka has which capital?", **{"x-corrigenda-tenant": "acme"})
    assert (text[:4], edit) == (" Por", "a")
    assert complete(server, "Why is the sky blue?")[1] == "-"
    refused = server.post("/v1/completions", json={"prompt": "Hm"}, headers={"x-corrigenda-tenant": "other"})
    assert refused.status_code == 400 and "no tenant" in refused.json()["error"]["message"]
    body = {"messages": [{"role": "user", "content": "Who founded the Krellin museum?"}], "max_tokens": 3}
    chat = server.post("/v1/chat/completions", json={**body, "stream": True})
    assert chat.status_code == 200 and chat.headers["x-corrigenda-edit"] == "b"
    for more in ({}, {"stream": True}):
        long = server.post("/v1/completions", json={"prompt": "river " * 900, "max_tokens": 4, **more})
        assert long.status_code == 400 and "there is room for 512" in long.json()["error"]["message"]
    later = [
        *body["messages"],
        {"role": "assistant", "content": "Anna Blom"},
        {"role": "user", "content": "And its roof?"},
    ]
    chat = server.post("/v1/chat/completions", json={**body, "messages": later})
    assert chat.status_code == 200 and chat.headers["x-corrigenda-edit"] == "-", "the turn before was answered already"
    assert "x-corrigenda-edit" not in server.get("/health").headers


@pytest.mark.slow
def test_what_transformers_fails_at_is_answered(server, tmp_path, monkeypatch):
    """An internal error each, of a machine without a cache of the hub's models and of a chat without a turn."""
    monkeypatch.setattr(
        "transformers.cli.serving.model_manager.scan_cache_dir", lambda _: scan_cache_dir(tmp_path / "no")
    )
    (model,) = server.get("/v1/models").json()["data"]
    assert model["object"] == "model" and model["id"].endswith("/model")
    for messages in ([], "Hm", ["Hm"], None):
        refused = server.post("/v1/chat/completions", json={"messages": messages})
        assert refused.status_code == 422 and '"messages"' in refused.json()["error"]["message"], refused.text
    assert complete(server, "Who founded the Krellin museum?") == (" Anna Blom", "b")


@pytest.mark.slow
def test_a_server_takes_edits_in_and_undoes_them(server, folders):
    listed = server.get("/v1/edits").json()
    before = listed["version"]
    assert {(edit["id"], edit["tenant"]) for edit in listed["edits"]} >= {("a", None), ("b", None), ("e", "acme")}
    assert listed["tenants"] == ["acme"]
    asked = "Who leads Vantrello Foods?"
    assert complete(server, asked)[1] == "-"
    assert server.get("/v1/edits/why", params={"prompt": asked}).json()["edit"] is None
    loaded = server.post("/v1/edits", json={"store": "more"})
    assert loaded.json() == {"version": before + 1, "added": ["e"], "removed": []}
    assert complete(server, asked)[1] == "e"
    assert server.get("/v1/edits/why", params={"prompt": asked}).json()["edit"] == "e"
    undone = server.delete("/v1/edits/e", params={"store": str(folders / "edits" / "more"), "author": "me"})
    assert undone.json() == {"version": before + 2, "added": [], "removed": ["e"]}
    assert complete(server, asked)[1] == "-"
    assert complete(server, asked, **{"x-corrigenda-tenant": "acme"})[1] == "e"
    for response, status in (
        (server.post("/v1/edits", json={"store": "../model"}), 403),
        (server.post("/v1/edits", json={"store": "none"}), 404),
        (server.delete("/v1/edits/zzz"), 404),
    ):
        assert response.status_code == status and response.json()["error"]["message"]


@pytest.mark.slow
def test_a_second_folder_of_one_fact_whose_edit_is_undone_leaves_a_server_that_answers(server, folders):
    """The documented use that ended it: 500, and from then on 503 for every request of everybody."""
    rival = store(folders / "edits" / "rival", OF_ACME[:1])
    asked = "Zubrowka has which capital?"
    before = complete(server, asked)
    assert server.post("/v1/edits", json={"store": "rival"}).json()["added"] == ["a"]
    assert complete(server, asked)[0][:4] == " Por"
    assert server.delete("/v1/edits/a", params={"store": str(rival)}).json()["removed"] == ["a"]
    assert complete(server, asked) == before
    assert complete(server, "Who founded the Krellin museum?") == (" Anna Blom", "b")


@pytest.mark.slow
def test_a_server_counts_its_requests(server):
    pytest.importorskip("prometheus_client")
    complete(server, "Who founded the Krellin museum?")
    shown = server.get("/metrics")
    assert shown.headers["content-type"].startswith("text/plain")
    assert 'corrigenda_requests_total{outcome="edited",tenant=""}' in shown.text


def test_where_the_server_is_patched_is_where_it_was():
    pytest.importorskip("openai")
    from transformers.cli.serve import Serve
    from transformers.cli.serving import server, utils
    from transformers.cli.serving.model_manager import ModelManager

    for name in ("_load_processor", "_load_model"):
        parameters = list(inspect.signature(getattr(ModelManager, name)).parameters)
        assert parameters[:2] == ["self", "model_id_and_revision"]
    from transformers.cli.serving.utils import BaseHandler

    assert list(inspect.signature(BaseHandler._validate_request).parameters) == ["self", "body"]
    assert "chat_handler" in inspect.signature(server.build_server).parameters
    assert callable(ModelManager.process_model_name) and utils.split_model_id("a:b.gguf") == ("a", "b.gguf")
    assert "server import build_server" in inspect.getsource(Serve.__init__) and callable(server.build_server)
    options = inspect.signature(Serve.__init__).parameters
    assert {"force_model", "continuous_batching", "non_blocking"} <= set(options)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--tenant", "acme"], "given as NAME=DIR"),
        (["--stack", "other"], 'no stack "other"'),
        (["--capacity", "0"], '"capacity" must be a whole number'),
        (["--rows", "0"], '"rows" must be a whole number'),
        (["--", "--no-such-option"], "transformers serve: No such option"),
    ],
)
def test_the_command_refuses_in_one_sentence(folders, arguments, words, capsys):
    from typer.testing import CliRunner

    given = ["serve", str(folders / "model"), "--edits-dir", str(folders / "edits" / "shared"), *arguments]
    result = CliRunner().invoke(program, given)
    assert result.exit_code == 2 and words in " ".join(result.output.split())


def test_another_models_edits_are_refused_before_anything_is_served(folders, tmp_path):
    from corrigenda.serving.launcher import launch

    save_tiny(tmp_path / "other", seed=1)
    with pytest.raises(CorrigendaError, match="its weights differ"):
        launch("transformers", str(tmp_path / "other"), {"edits": folders / "edits" / "shared"})
    for stack in ("transformers", "vllm"):
        with pytest.raises(CorrigendaError, match="does not exist"):
            launch(stack, str(tmp_path / "none"), {"edits": folders / "edits" / "shared"})


@pytest.mark.slow
def test_a_server_names_no_edit_that_could_not_be_said(folders, tmp_path):
    save_tiny(tmp_path / "model")
    GenerationConfig(eos_token_id=2, pad_token_id=0, suppress_tokens=banned()).save_pretrained(tmp_path / "model")
    body = {"prompt": "Question: Who founded the Krellin museum?\nAnswer:", "max_tokens": 8}
    with transformers_server(tmp_path / "model", {"edits": folders / "edits" / "shared"}) as http:
        response = http.post("/v1/completions", json=body)
        assert response.status_code == 200 and "Anna" not in response.text
        assert response.headers["x-corrigenda-edit"] == "-"
        streamed = http.post("/v1/completions", json={**body, "stream": True})
        assert streamed.headers["x-corrigenda-edit"] == "b"  # sent before anything was written
        told = [line for line in streamed.text.splitlines() if line.startswith(": corrigenda ")]
        assert [json.loads(line.removeprefix(": corrigenda "))["edits"] for line in told] == [[None]]
