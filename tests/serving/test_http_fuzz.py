"""Requests of any kind to the routes for edits: each has a status and a sentence, and nothing outside is touched."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest

fastapi = pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("httpx")
from fastapi.testclient import TestClient  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as some  # noqa: E402
from tiny import tiny_tokenizer  # noqa: E402

from corrigenda.serving import Catalogue, ServingSettings  # noqa: E402
from corrigenda.serving.access import Access  # noqa: E402
from corrigenda.serving.edit_header import EditHeader  # noqa: E402
from corrigenda.serving.endpoints import edits_router  # noqa: E402

pytestmark = pytest.mark.usefixtures("few_background_prompts")

EXAMPLES = int(os.environ.get("CORRIGENDA_FUZZ", "300"))
"""`CORRIGENDA_FUZZ=2000` takes two minutes."""

TEXTS = some.one_of(
    some.sampled_from(
        [
            "shared",
            "acme",
            "more",
            "../outside",
            "/etc",
            "link",
            "a",
            "e",
            "why",
            "x" * 300,
            "a\nb",
            "\0",
            "\u202e",
            "%00",
            "",
        ]
    ),
    some.text(max_size=12),
)
NAMES = some.sampled_from(["store", "tenant", "author", "id", "prompt", "other"])
JSON = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | TEXTS,
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(NAMES | TEXTS, inner, max_size=4),
    max_leaves=8,
)
PATHS = some.sampled_from(["/v1/edits", "/v1/edits/why", "/v1/stores", "/v1/tenants"]) | TEXTS.map(
    lambda text: (
        "/v1/edits/" + text.encode("utf-8", "surrogatepass").hex("%", 1).join(["%", ""]) if text else "/v1/edits/"
    )
)
HEADERS = some.dictionaries(
    some.sampled_from(["x-corrigenda-tenant", "origin", "host", "x-corrigenda-key", "authorization", "content-type"]),
    some.sampled_from(
        ["acme", "new", "http://localhost", "null", "localhost", "evil.example", "application/json", "Bearer x", ""]
    ),
    max_size=3,
)
BODIES = some.one_of(
    some.fixed_dictionaries({"store": TEXTS}, optional={"tenant": TEXTS}).map(lambda value: json.dumps(value).encode()),
    JSON.map(lambda value: json.dumps(value).encode()),
    some.binary(max_size=40),
    some.just(b"[" * 70_000),
)


class Live:
    """A catalogue behind the routes, as a server has it, without a model."""

    def __init__(self, catalogue):
        self.catalogue, self.access = catalogue, Access(catalogue.settings, local=True)

    def without_paths(self, text):
        return self.catalogue.without_paths(text)

    def _take(self, change):
        return change.to_dict(self.catalogue.publish(change))

    async def load(self, store, tenant, snapshot):
        return self._take(self.catalogue.read([(tenant, self.catalogue.allowed(store, tenant))], snapshot=snapshot))

    async def stage(self, store, tenant, snapshot):
        change = self.catalogue.read([(tenant, self.catalogue.allowed(store, tenant))], snapshot=snapshot)
        self.catalogue.stage(change)
        return change.to_dict(self.catalogue.version)

    async def drop_staged(self, store, tenant):
        self.catalogue.drop_staged(tenant, self.catalogue.allowed(store, tenant))
        return {"version": self.catalogue.version, "added": [], "removed": []}

    async def undo(self, edit, tenant, store, author):
        path = None if store is None else self.catalogue.allowed(store, tenant)
        return self._take(self.catalogue.undo(edit, tenant, path, author))

    async def unload(self, store, tenant):
        return self._take(self.catalogue.unload(tenant, self.catalogue.allowed(store, tenant)))

    async def forget(self, tenant):
        return self._take(self.catalogue.forget(tenant))

    async def listing(self, tenant, everything):
        return self.catalogue.listing(tenant, everything)

    async def why(self, prompt, tenant):
        return await asyncio.to_thread(self.catalogue.why, prompt, tenant)


@pytest.fixture(scope="module")
def server(folders, tmp_path_factory):
    base = tmp_path_factory.mktemp("fuzz")
    root, outside = base / "root", base / "outside"
    for name in ("shared", "acme"):
        shutil.copytree(folders / name, root / name)
    shutil.copytree(folders / "acme", root / "more")
    shutil.copytree(folders / "acme", outside)
    (root / "link").symlink_to(outside)
    given = {"edits": root / "shared", "tenants": {"acme": root / "acme"}, "root": root, "most_tenants": 4}
    app = fastapi.FastAPI()
    app.include_router(edits_router(Live(Catalogue(tiny_tokenizer(), ServingSettings.parse(given)))))
    app.add_middleware(EditHeader)
    return TestClient(app, "http://localhost", raise_server_exceptions=False, client=("127.0.0.1", 5)), root


def listed(folder: Path):
    """Every file around, with what it holds; but for SQLite's own beside a ledger of the root."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_relative_to(folder / "root"))
    return [(path, path.read_bytes()) for path in files], sorted(path.name for path in (folder / "root").iterdir())


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    some.sampled_from(["GET", "POST", "DELETE"]),
    PATHS,
    some.lists(some.tuples(NAMES, TEXTS), max_size=3),
    BODIES,
    HEADERS,
)
def test_every_request_has_a_status_and_a_sentence(server, method, path, query, body, headers):
    client, root = server
    before = listed(root.parent)
    query = [(name, value.encode("utf-8", "replace").decode()) for name, value in query]
    content = {"content": body} if method == "POST" else {}
    response = client.request(
        method, path, params=query, headers={"content-type": "application/json", **headers}, **content
    )
    assert response.status_code < 500, response.text
    if response.status_code >= 400 and response.headers["content-type"] == "application/json":
        said = response.json()
        error = said.get("error", {"message": said.get("detail")})["message"]
        assert error and error.isprintable() and str(root.parent) not in error, error
    else:
        assert str(root.parent) not in response.text
    assert listed(root.parent) == before
