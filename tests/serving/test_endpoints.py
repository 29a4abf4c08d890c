"""The routes for edits, the header that names the edit, and `transformers serve` with both."""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
import time

import pytest
from served import OF_ACME, SHARED, store
from tiny import save_tiny

fastapi = pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
httpx = pytest.importorskip("httpx")
from fastapi.testclient import TestClient  # noqa: E402

from corrigenda.editing import CorrigendaError  # noqa: E402
from corrigenda.editing.cli.app import app as program  # noqa: E402
from corrigenda.serving import ServingError  # noqa: E402
from corrigenda.serving.access import Access  # noqa: E402
from corrigenda.serving.edit_header import LONGEST_HEADER, EditHeader, HttpRequest, current_request  # noqa: E402
from corrigenda.serving.endpoints import edits_router  # noqa: E402


class Recorded:
    """A stack that writes down what it is asked, and answers or raises what it was told to."""

    def __init__(self, answer=None, access=None):
        self.calls = []
        self.access = access or Access(local=True)
        self.answer = answer or {"version": 2, "added": ["a"], "removed": []}

    async def _answered(self, *call):
        self.calls.append(call)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def load(self, store, tenant):
        return await self._answered("load", store, tenant)

    async def undo(self, edit, tenant, store, author):
        return await self._answered("undo", edit, tenant, store, author)

    async def unload(self, store, tenant):
        return await self._answered("unload", store, tenant)

    async def forget(self, tenant):
        return await self._answered("forget", tenant)

    async def listing(self, tenant, everything):
        return await self._answered("listing", tenant, everything)

    def without_paths(self, text):
        return text

    async def why(self, prompt, tenant):
        return await self._answered("why", prompt, tenant)


def client(stack):
    app = fastapi.FastAPI()
    app.include_router(edits_router(stack))
    return TestClient(app, "http://localhost", raise_server_exceptions=False, client=("127.0.0.1", 50_000))


@pytest.mark.parametrize(
    "method, path, body, call",
    [
        ("GET", "/v1/edits", None, ("listing", None, True)),
        ("GET", "/v1/edits?tenant=acme", None, ("listing", "acme", False)),
        ("POST", "/v1/edits", {"store": "more"}, ("load", "more", None)),
        ("POST", "/v1/edits", {"store": "more", "tenant": "acme"}, ("load", "more", "acme")),
        ("POST", "/v1/edits", {"store": "more", "tenant": None}, ("load", "more", None)),
        ("GET", "/v1/edits/why?prompt=Who%20leads%3F", None, ("why", "Who leads?", None)),
        ("GET", "/v1/edits/why?prompt=Who&tenant=acme", None, ("why", "Who", "acme")),
        ("DELETE", "/v1/edits/edit-00001", None, ("undo", "edit-00001", None, None, None)),
        ("DELETE", "/v1/edits/why", None, ("undo", "why", None, None, None)),
        ("DELETE", "/v1/edits?id=a%0Ab%00&tenant=t", None, ("undo", "a\nb\0", "t", None, None)),
        ("DELETE", "/v1/stores?store=a%2Fb&tenant=t", None, ("unload", "a/b", "t")),
        ("DELETE", "/v1/tenants?tenant=t", None, ("forget", "t")),
        ("DELETE", "/v1/edits/a%2Fb%20c?tenant=t&store=s&author=me", None, ("undo", "a/b c", "t", "s", "me")),
    ],
)
def test_routes(method, path, body, call):
    stack = Recorded()
    response = client(stack).request(method, path, json=body)
    assert response.status_code == 200 and response.json() == stack.answer
    assert stack.calls == [call]


@pytest.mark.parametrize(
    "method, path, body, words",
    [
        ("POST", "/v1/edits", b"", "must be a JSON object such as"),
        ("POST", "/v1/edits", b"{", "must be a JSON object such as"),
        ("POST", "/v1/edits", b"\xff\xfe", "must be a JSON object such as"),
        ("POST", "/v1/edits", b"[" * 60_000, "must be a JSON object such as"),
        ("POST", "/v1/edits", b"[]", "must be a JSON object."),
        ("POST", "/v1/edits", b"{}", 'must hold "store".'),
        ("POST", "/v1/edits", b'{"store": null}', 'must hold "store".'),
        ("POST", "/v1/edits", b'{"store": 3}', 'must hold "store" as text.'),
        ("POST", "/v1/edits", b'{"store": ""}', 'must hold "store" as text.'),
        ("POST", "/v1/edits", b'{"store": "a\\u0000b"}', 'must hold "store" as text.'),
        ("POST", "/v1/edits", b'{"store": "a", "tenants": "b"}', 'unknown field "tenants"'),
        ("POST", "/v1/edits", b'{"store": "' + b"a" * 70_000 + b'"}', "longer than"),
        ("GET", "/v1/edits/why", None, 'must hold "prompt".'),
        ("GET", "/v1/edits/why?prompt=", None, 'must hold "prompt" as text.'),
        ("DELETE", "/v1/edits/a?tennant=b", None, 'unknown field "tennant"'),
        ("DELETE", "/v1/edits/a?tenant=b&tenant=c", None, "holds a field twice"),
        ("DELETE", "/v1/edits/a?author=b%0A", None, "cannot be shown"),
        ("DELETE", "/v1/edits", None, 'must hold "id"'),
        ("DELETE", "/v1/tenants", None, 'must hold "tenant"'),
        ("POST", "/v1/edits", b'{"store": "a", "tenant": "b\\u001b"}', "cannot be shown"),
    ],
)
def test_what_is_malformed_is_said_in_one_sentence(method, path, body, words):
    stack = Recorded()
    response = client(stack).request(method, path, content=body, headers={"content-type": "application/json"})
    error = response.json()["error"]
    assert response.status_code == 400 and error["type"] == "invalid_request_error"
    assert words in error["message"] and "\n" not in error["message"] and not stack.calls


@pytest.mark.parametrize(
    "error, status, kind",
    [
        (ServingError("No such edit.", 404), 404, "not_found_error"),
        (ServingError("Not here.", 403), 403, "permission_error"),
        (ServingError("Being written.", 409), 409, "conflict_error"),
        (ServingError("Full.", 507), 507, "capacity_error"),
        (CorrigendaError("Damaged."), 422, "invalid_request_error"),
    ],
)
def test_a_refusal_has_its_status(error, status, kind):
    response = client(Recorded(error)).get("/v1/edits")
    assert response.status_code == status
    assert response.json() == {"error": {"message": str(error), "type": kind, "code": status}}


def test_a_refusal_can_repeat_what_is_no_text():
    response = client(Recorded(ServingError('There is no tenant "\ud800" here.', 400))).get("/v1/edits")
    assert response.status_code == 400 and response.json()["error"]["message"] == 'There is no tenant "\\ud800" here.'


# The header


def sent(app, headers=()):
    """The messages that a client gets of an ASGI app behind the middleware."""
    messages = []

    async def send(message):
        messages.append(message)

    async def run():
        await EditHeader(app)({"type": "http", "headers": list(headers)}, None, send)

    asyncio.run(run())
    assert current_request() is None
    return messages


def start(**more):
    return {"type": "http.response.start", "status": 200, "headers": [(b"x-other", b"1")], **more}


BODY = {"type": "http.response.body", "body": b"..."}


def test_the_start_waits_for_what_is_found_later():
    seen = []

    async def app(scope, receive, send):
        await send(start())
        seen.append(current_request().tenant)
        current_request().decided("edit-1", 7)
        current_request().decided(None, 7)
        await asyncio.to_thread(lambda: current_request().decided("edit 3,\r\n-é", 8))
        await send(BODY)
        current_request().decided("late", 9)
        await send(BODY)

    first, *rest = sent(app, [(b"X-Corrigenda-Tenant", b"acme")])
    assert seen == ["acme"] and rest == [BODY, BODY]
    header = b"edit-1,-,edit%203%2C%0D%0A-%C3%A9"
    found = [(b"x-corrigenda-edit", header), (b"x-corrigenda-version", b"8")]
    assert first == start(headers=[(b"x-other", b"1"), *found])


def bulky(count, kind, *bodies, more=()):
    """An answer to many prompts, by edits of long names and of names that mean something in the header."""

    async def app(scope, receive, send):
        await send(start(headers=[(b"content-type", kind), (b"content-length", b"7"), *more]))
        for n in range(count):
            current_request().decided(None if n % 3 == 0 else f"edit-{n:05d}" if n % 3 == 1 else "*1", 4)
        for number, body in enumerate(bodies, start=1):
            await send({"type": "http.response.body", "body": body, "more_body": number < len(bodies)})

    return app


IDS = [None if n % 3 == 0 else f"edit-{n:05d}" if n % 3 == 1 else "*1" for n in range(900)]


def test_ids_that_no_header_can_hold_are_in_the_body():
    first, body = sent(bulky(900, b"application/json; charset=utf-8", b'{"choices": [', b'"\xc3\xa9"]}'))
    headers = dict(first["headers"])
    assert headers[b"x-corrigenda-edit"] == b"*600" and headers[b"x-corrigenda-version"] == b"4"
    assert json.loads(body["body"]) == {"choices": ["é"], "corrigenda": {"edits": IDS, "version": 4}}
    assert [value for name, value in first["headers"] if name == b"content-length"] == [b"%d" % len(body["body"])]
    first, *events = sent(bulky(900, b"text/event-stream", b"data: 1\n\n", b"data: 2\n\n"))
    comment, event = events[0]["body"].split(b"\n\n", 1)
    assert json.loads(comment.removeprefix(b": corrigenda ")) == {"edits": IDS, "version": 4}
    assert (event, events[1]["body"]) == (b"data: 1\n\n", b"data: 2\n\n")
    for kind, more in ((b"text/plain", ()), (b"application/json", [(b"content-encoding", b"gzip")])):
        first, *rest = sent(bulky(900, kind, b"[1", b"]", more=more))
        assert dict(first["headers"])[b"x-corrigenda-edit"] == b"*600"
        assert [piece["body"] for piece in rest] == [b"[1", b"]"]
    (first, body) = sent(bulky(900, b"application/json", b"[1]"))
    assert body["body"] == b"[1]"


def test_a_header_is_never_longer_than_its_bound():
    for name in ("x" * 3000, "é" * 600, "*", "*5", "-"):
        request = HttpRequest()
        request.decided(name, 1)
        assert len(request.header) <= LONGEST_HEADER
        assert request.header == {"*": "%2A", "*5": "%2A5", "-": "%2D"}.get(name, "*1")
    first, body = sent(bulky(8, b"application/json", b"{}"))
    assert dict(first["headers"])[b"x-corrigenda-edit"].startswith(b"-,edit-00001,%2A1,-,")
    assert body["body"] == b"{}"


@pytest.mark.parametrize("outside", [False, True], ids=["cors within", "cors around"])
def test_pages_of_other_origins_may_read_the_headers(outside):
    from fastapi import FastAPI
    from fastapi.middleware.cors import CORSMiddleware

    app = FastAPI()

    @app.get("/")
    async def answer():
        current_request().decided("a", 1)

    for middleware in (EditHeader, CORSMiddleware) if outside else (CORSMiddleware, EditHeader):
        options = {"allow_origins": ["*"]} if middleware is CORSMiddleware else {}
        app.add_middleware(middleware, **options)
    headers = TestClient(app).get("/", headers={"origin": "https://elsewhere.example"}).headers
    assert headers["access-control-allow-origin"] == "*" and headers["x-corrigenda-edit"] == "a"
    assert headers["access-control-expose-headers"] == "x-corrigenda-edit, x-corrigenda-version"
    assert "access-control-expose-headers" not in TestClient(app).get("/").headers


@pytest.mark.parametrize(("given", "told"), [(b"*", b"*"), (b"x-a", b"x-a, x-corrigenda-edit, x-corrigenda-version")])
def test_what_an_app_lets_pages_read_stays(given, told):
    app = bulky(1, b"text/plain", b"", more=[(b"Access-Control-Expose-Headers", given)])
    first, _ = sent(app, [(b"origin", b"https://elsewhere.example")])
    assert {name.lower(): value for name, value in first["headers"]}[b"access-control-expose-headers"] == told


def test_other_answers_are_left_alone():
    async def app(scope, receive, send):
        assert current_request().tenant is None
        await send(start())
        await send(BODY)

    assert sent(app) == [start(), BODY]
    assert HttpRequest().header == ""
    request = HttpRequest()
    request.edits = ["-", None]  # an edit may be called so
    assert request.header == "%2D,-"

    async def sockets(scope, receive, send):
        assert current_request() is None
        await send({"type": "websocket.accept"})

    async def run():
        messages = []

        async def send(message):
            messages.append(message)

        await EditHeader(sockets)({"type": "websocket", "headers": []}, None, send)
        return messages

    assert asyncio.run(run()) == [{"type": "websocket.accept"}]


def test_an_app_that_fails_before_its_answer_leaves_nothing_behind():
    async def app(scope, receive, send):
        await send(start())
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        sent(app)
    assert current_request() is None


# `transformers serve`


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
    pytest.importorskip("uvicorn")
    pytest.importorskip("openai")
    from corrigenda.serving.launcher import launch

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    settings = {
        "edits": folders / "edits" / "shared",
        "tenants": {"acme": folders / "edits" / "acme"},
        "root": folders / "edits",
    }
    options = ["--port", str(port), "--device", "cpu", "--cb-num-blocks", "128", "--cb-max-batch-tokens", "64"]
    running = launch("transformers", str(folders / "model"), settings, [*options, "--non-blocking"])
    with httpx.Client(base_url=f"http://localhost:{port}", timeout=60) as http:
        for _ in range(600):
            try:
                http.get("/health")
                break
            except httpx.TransportError:
                time.sleep(0.05)
        yield http
    running.kill_server()


def test_a_model_that_cannot_be_loaded_is_named(tmp_path):
    pytest.importorskip("uvicorn")
    from corrigenda.serving.launcher import launch

    (tmp_path / "empty").mkdir()
    with pytest.raises(CorrigendaError, match=r'^The model ".*empty" could not be loaded: .*; give "smollm2"'):
        launch("transformers", str(tmp_path / "empty"), {"edits": tmp_path / "edits"})


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
    assert "x-corrigenda-edit" not in server.get("/health").headers


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
