"""Who may ask the routes for edits what: keys, addresses, other sites' pages, and whose a request is."""

from __future__ import annotations

import logging

import pytest

fastapi = pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("httpx")
from fastapi.testclient import TestClient  # noqa: E402

from corrigenda.editing import CorrigendaError  # noqa: E402
from corrigenda.serving import ServingError, ServingSettings  # noqa: E402
from corrigenda.serving.access import Access, keys_of, listens_locally, tenant_of  # noqa: E402
from corrigenda.serving.edit_header import EditHeader, current_request  # noqa: E402
from corrigenda.serving.endpoints import edits_router  # noqa: E402

CHANGE, READ = "c" * 32, "r" * 32
HERE, ELSEWHERE = "127.0.0.1", "192.0.2.7"


class Stack:
    """Writes down what the routes ask of it."""

    def __init__(self, access):
        self.access, self.calls = access, []

    def without_paths(self, text):
        return text

    def __getattr__(self, name):
        async def call(*given, **named):
            self.calls.append((name, *given, *named.values()))
            return {"version": 2, "added": [], "removed": []}

        return call


def ask(access, method="POST", path="/v1/edits", peer=HERE, base="http://localhost:8000", **given):
    """The status of a request, and what the stack was asked."""
    stack = Stack(access)
    app = fastapi.FastAPI()
    app.include_router(edits_router(stack, given.pop("log", "corrigenda")))
    app.add_middleware(EditHeader)
    if method == "POST" and "content" not in given:
        given["json"] = {"store": "more", **given.pop("body", {})}
    response = TestClient(app, base, client=(peer, 5)).request(method, path, **given)
    assert response.status_code < 500
    if response.status_code >= 400 and response.status_code != 404:
        assert not stack.calls and response.json()["error"]["code"] == response.status_code
        assert "\n" not in response.json()["error"]["message"]
    return response.status_code, stack.calls


def key(value):
    return {"headers": {"x-corrigenda-key": value}}


OPEN, LOCAL = Access(), Access(local=True)
KEYED = Access(changing={"ops": CHANGE}, reading={"look": READ})
LOCAL_KEYED = Access(local=True, changing={"key": CHANGE})


@pytest.mark.parametrize(
    "access, peer, given, read, change",
    [
        (LOCAL, HERE, {}, 200, 200),
        (LOCAL, "::1", {}, 200, 200),
        (LOCAL, ELSEWHERE, {}, 200, 403),
        (LOCAL, HERE, {"headers": {"x-forwarded-for": ELSEWHERE}}, 200, 403),  # a proxy of this machine
        (OPEN, HERE, {}, 200, 403),  # who else is here?
        (OPEN, ELSEWHERE, {}, 200, 403),
        (OPEN, ELSEWHERE, key(CHANGE), 200, 403),
        (LOCAL_KEYED, HERE, {}, 200, 401),
        (LOCAL_KEYED, HERE, key(CHANGE), 200, 200),
        (KEYED, ELSEWHERE, {}, 401, 401),
        (KEYED, ELSEWHERE, key("x" * 32), 401, 401),
        (KEYED, ELSEWHERE, key(READ), 200, 401),
        (KEYED, ELSEWHERE, key(CHANGE), 200, 200),
        (KEYED, ELSEWHERE, {"headers": {"authorization": f"Bearer {CHANGE}"}}, 200, 200),
        (KEYED, ELSEWHERE, {"headers": {"authorization": "Bearer vllm", "x-corrigenda-key": CHANGE}}, 200, 200),
    ],
)
def test_keys_and_addresses(access, peer, given, read, change):
    assert ask(access, "GET", peer=peer, **given)[0] == read
    assert ask(access, "GET", "/v1/edits/why?prompt=Who", peer=peer, **given)[0] == read
    assert ask(access, "POST", peer=peer, **given)[0] == change
    for path in ("/v1/edits/a", "/v1/edits?id=a", "/v1/stores?store=a", "/v1/tenants?tenant=a"):
        assert ask(access, "DELETE", path, peer=peer, **given)[0] == change


@pytest.mark.parametrize(
    "access, base, headers, status",
    [
        (LOCAL, "http://127.0.0.1:8000", {}, 200),
        (LOCAL, "http://[::1]:8000", {}, 200),
        (LOCAL, "http://rebound.example:8000", {}, 421),  # a name whose owner makes it this machine's
        (LOCAL_KEYED, "http://edits.example", {"x-corrigenda-key": CHANGE}, 200),
        (LOCAL, "http://localhost:8000", {"origin": "http://localhost:8000"}, 200),
        (LOCAL, "http://localhost:8000", {"origin": "http://evil.example"}, 403),
        (LOCAL, "http://localhost:8000", {"origin": "http://localhost:9000"}, 403),
        (LOCAL, "http://localhost:8000", {"origin": "null"}, 403),
    ],
)
def test_other_sites_and_names(access, base, headers, status):
    assert ask(access, base=base, headers=headers)[0] == status
    assert ask(access, "GET", base=base, headers=headers)[0] == status


def test_names_and_sites_that_are_allowed():
    settings = ServingSettings.parse({"edits": "e", "hosts": ["Edits.example"], "origins": ["https://Desk.example"]})
    access = Access(settings, changing={"key": CHANGE})
    headers = {"x-corrigenda-key": CHANGE, "origin": "https://desk.example"}
    assert ask(access, base="http://edits.example:80", headers=headers)[0] == 200
    assert ask(access, base="http://localhost", headers=headers)[0] == 421


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None, "text/json"])
def test_a_body_that_a_page_may_send_unasked_is_refused(kind):
    """No browser asks first before it sends one of these: it loaded a folder from any page that was open."""
    headers = {} if kind is None else {"content-type": kind}
    assert ask(LOCAL, content=b'{"store": "more"}', headers=headers)[0] == 415
    json = {"content-type": "application/json; charset=utf-8"}
    assert ask(LOCAL, content=b'{"store": "more"}', headers=json) == (200, [("load", "more", None, None)])


HEADER = "x-corrigenda-tenant"


@pytest.mark.parametrize("only", [False, True])
def test_the_header_has_the_word_on_whose_a_request_is(only):
    access = Access(ServingSettings.parse({"edits": "e", "tenant_header_only": only}), local=True)
    acme, none = {"headers": {HEADER: "acme"}}, {}
    assert ask(access, **acme) == (200, [("load", "more", "acme", None)])
    assert ask(access, body={"tenant": "acme"}, **acme) == (200, [("load", "more", "acme", None)])
    assert ask(access, body={"tenant": "other"}, **acme)[0] == 403
    assert ask(access, body={"tenant": "acme"}, **none)[0] == (403 if only else 200)
    assert ask(access, "DELETE", "/v1/edits/a", **acme) == (200, [("undo", "a", "acme", None, None)])
    assert ask(access, "DELETE", "/v1/edits/a?tenant=other", **acme)[0] == 403
    assert ask(access, "GET", **acme) == (200, [("listing", "acme", False)])
    assert ask(access, "GET", "/v1/edits/why?prompt=Who&tenant=other", **acme)[0] == 403
    assert ask(access, "DELETE", "/v1/tenants?tenant=other", **acme)[0] == 403


def test_whose_a_request_is():
    assert tenant_of(None, None, True) is None and tenant_of("a", None, True) == "a" == tenant_of("a", "a", True)
    assert tenant_of(None, "a", False) == "a"
    for header, given, only in (("a", "b", False), ("a", "b", True), (None, "a", True), ("a", 3, False)):
        with pytest.raises(ServingError, match="tenant"):
            tenant_of(header, given, only)


@pytest.mark.parametrize("path", ["/v1/edits", "/completions"])
def test_a_header_that_is_sent_twice_is_refused(path):
    seen = []

    async def completions(request):
        seen.append(current_request().tenant)
        return fastapi.responses.JSONResponse({})

    app = fastapi.FastAPI()
    app.include_router(edits_router(Stack(LOCAL)))
    app.add_route("/completions", completions)
    app.add_middleware(EditHeader)
    client = TestClient(app, "http://localhost", client=(HERE, 5))
    twice = client.get(path, headers=[(HEADER, "acme"), (HEADER.upper(), "other")])
    assert twice.status_code == 400 and "sent twice" in twice.json()["error"]["message"] and not seen
    assert client.get(path, headers=[(HEADER, "acme")]).status_code == 200


def test_a_change_is_logged_with_who_and_recorded_as_theirs(caplog):
    with caplog.at_level(logging.INFO, "corrigenda"):
        _, calls = ask(KEYED, "DELETE", "/v1/edits?id=a%0AERROR:%20b", peer=ELSEWHERE, **key(CHANGE))
    assert calls == [("undo", "a\nERROR: b", None, None, "ops")]
    assert f"undo of a\\nERROR: b by ops from {ELSEWHERE}: version 2, added 0, removed 0" in caplog.text
    with caplog.at_level(logging.INFO, "vllm.corrigenda"):
        ask(LOCAL, log="vllm.corrigenda")
    assert caplog.records[-1].name == "vllm.corrigenda" and "load of more by this machine" in caplog.text
    assert ask(KEYED, "DELETE", "/v1/edits/a?author=me", peer=ELSEWHERE, **key(CHANGE))[0] == 400
    assert ask(LOCAL, "DELETE", "/v1/edits/a?author=me")[1] == [("undo", "a", None, None, "me")]


def test_keys_are_long_and_apart():
    assert keys_of(f"ops={CHANGE}\n\n  desk={READ} ", "K") == {"ops": CHANGE, "desk": READ}
    assert keys_of([CHANGE], "K") == {"key": CHANGE} and keys_of("", "K") == {}
    assert keys_of("QUJDREVGR0hJSktMTU5PUA==", "K") == {"key": "QUJDREVGR0hJSktMTU5PUA=="}
    for given in ("short", f"{CHANGE}\n{READ}", f"a={CHANGE}\na={READ}", "k" * 20 + "\u00e9", "k" * 20 + "\x7f"):
        with pytest.raises(CorrigendaError, match="K"):
            keys_of(given, "K")


@pytest.mark.parametrize(
    "host, local",
    [
        *[("localhost", True), ("127.0.0.1", True), ("::1", True), ("127.8.0.1", True)],
        *[("0.0.0.0", False), ("::", False), (None, False), ("192.0.2.7", False), ("edits.example", False)],
    ],
)
def test_where_a_server_listens(host, local):
    assert listens_locally(host, "0.0.0.0") == local
