"""The routes for edits: what each asks of a stack, and what is malformed."""

from __future__ import annotations

import pytest

fastapi = pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
httpx = pytest.importorskip("httpx")
from fastapi.testclient import TestClient  # noqa: E402

from corrigenda.editing import CorrigendaError  # noqa: E402
from corrigenda.serving import ServingError  # noqa: E402
from corrigenda.serving.access import Access  # noqa: E402
from corrigenda.serving.endpoints import edits_router  # noqa: E402

SNAPSHOT = "12-0123456789abcdef"


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

    async def load(self, store, tenant, snapshot):
        return await self._answered("load", store, tenant, snapshot and str(snapshot))

    async def stage(self, store, tenant, snapshot):
        return await self._answered("stage", store, tenant, str(snapshot))

    async def drop_staged(self, store, tenant):
        return await self._answered("drop_staged", store, tenant)

    async def undo(self, edit, tenant, store, author):
        return await self._answered("undo", edit, tenant, store, author)

    async def redo(self, edit, tenant, store, author):
        return await self._answered("redo", edit, tenant, store, author)

    async def narrow(self, tenant, everything):
        return await self._answered("narrow", tenant, everything)

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
        ("POST", "/v1/edits", {"store": "more"}, ("load", "more", None, None)),
        ("POST", "/v1/edits", {"store": "more", "tenant": "acme"}, ("load", "more", "acme", None)),
        ("POST", "/v1/edits", {"store": "more", "tenant": None}, ("load", "more", None, None)),
        ("POST", "/v1/edits", {"store": "more", "snapshot": SNAPSHOT}, ("load", "more", None, SNAPSHOT)),
        ("POST", "/v1/snapshots", {"store": "more", "snapshot": SNAPSHOT}, ("stage", "more", None, SNAPSHOT)),
        ("DELETE", "/v1/snapshots?store=more&tenant=t", None, ("drop_staged", "more", "t")),
        ("GET", "/v1/edits/why?prompt=Who%20leads%3F", None, ("why", "Who leads?", None)),
        ("GET", "/v1/edits/why?prompt=Who&tenant=acme", None, ("why", "Who", "acme")),
        ("DELETE", "/v1/edits/edit-00001", None, ("undo", "edit-00001", None, None, None)),
        ("DELETE", "/v1/edits/why", None, ("undo", "why", None, None, None)),
        ("DELETE", "/v1/edits?id=a%0Ab%00&tenant=t", None, ("undo", "a\nb\0", "t", None, None)),
        ("DELETE", "/v1/stores?store=a%2Fb&tenant=t", None, ("unload", "a/b", "t")),
        ("DELETE", "/v1/tenants?tenant=t", None, ("forget", "t")),
        ("GET", "/v1/edits/narrow?tenant=t", None, ("narrow", "t", False)),
        ("GET", "/v1/edits/narrow", None, ("narrow", None, True)),
        ("POST", "/v1/edits/redo", {"id": "a b", "tenant": "t", "author": "me"}, ("redo", "a b", "t", None, "me")),
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
        ("POST", "/v1/edits", b'{"store": "a", "snapshot": "last"}', '"last" is no name of a snapshot'),
        ("POST", "/v1/snapshots", b'{"store": "a"}', 'must hold "snapshot"'),
        ("POST", "/v1/snapshots", b'{"store": "a", "snapshot": "0-0123456789abcdef"}', "is no name of a snapshot"),
        ("DELETE", "/v1/snapshots", None, 'must hold "store"'),
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
