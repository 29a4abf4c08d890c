"""The header of an answer that names the edit, whatever the app behind it sends."""

from __future__ import annotations

import asyncio
import json

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("httpx")
from fastapi.testclient import TestClient

from corrigenda.serving.edit_header import LONGEST_HEADER, EditHeader, HttpRequest, current_request


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
        await asyncio.to_thread(lambda: current_request().decided("edit 3,\r\n-é", 8, "5-0123"))
        await send(BODY)
        current_request().decided("late", 9)
        await send(BODY)

    first, *rest = sent(app, [(b"X-Corrigenda-Tenant", b"acme")])
    assert seen == ["acme"] and rest == [BODY, BODY]
    header = b"edit-1,-,edit%203%2C%0D%0A-%C3%A9"
    found = [(b"x-corrigenda-edit", header), (b"x-corrigenda-version", b"8"), (b"x-corrigenda-snapshot", b"5-0123")]
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
    assert json.loads(body["body"]) == {"choices": ["é"], "corrigenda": {"edits": IDS, "version": 4, "snapshot": ""}}
    assert [value for name, value in first["headers"] if name == b"content-length"] == [b"%d" % len(body["body"])]
    first, *events = sent(bulky(900, b"text/event-stream", b"data: 1\n\n", b"data: 2\n\n"))
    comment, event = events[0]["body"].split(b"\n\n", 1)
    assert json.loads(comment.removeprefix(b": corrigenda ")) == {"edits": IDS, "version": 4, "snapshot": ""}
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
    assert headers["access-control-expose-headers"] == "x-corrigenda-edit, x-corrigenda-version, x-corrigenda-snapshot"
    assert "access-control-expose-headers" not in TestClient(app).get("/").headers


@pytest.mark.parametrize(
    ("given", "told"), [(b"*", b"*"), (b"x-a", b"x-a, x-corrigenda-edit, x-corrigenda-version, x-corrigenda-snapshot")]
)
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
