"""HTTP for edits: the routes under `/v1/edits`. It knows no stack."""

# Not `from __future__ import annotations`: FastAPI reads those of the handlers, whose classes are imported when needed.

import json
from collections.abc import Awaitable, Callable, Container, Mapping
from typing import Any, Protocol

from ..editing.errors import CorrigendaError
from ..editing.shown import name as checked_name
from ..editing.shown import shown
from ..editing.store.snapshots import Snapshot
from .access import Access, Caller
from .edit_header import tenant_named
from .errors import Malformed, ServingError, error_body
from .log import logger_of
from .page import HEADERS, PAGE

_LONGEST_BODY = 64 * 1024


class ServedEdits(Protocol):
    """What the routes ask of a stack. Each may raise a CorrigendaError, best a ServingError with its status."""

    @property
    def access(self) -> Access:
        """Who may ask what."""

    def without_paths(self, text: str) -> str:
        """A sentence with folders called what clients call them."""

    async def load(self, store: str, tenant: str | None, snapshot: Snapshot | None) -> dict[str, Any]:
        """Take in a folder of edits, or read it again, as it is or was at a snapshot.

        Gives the `version`, and ids that were `added` and `removed`.
        """

    async def stage(self, store: str, tenant: str | None, snapshot: Snapshot) -> dict[str, Any]:
        """Have ready what `load` of this snapshot takes, and answer as before: what it will add and remove."""

    async def drop_staged(self, store: str, tenant: str | None) -> dict[str, Any]:
        """Let go of what was staged of a folder."""

    async def undo(self, edit: str, tenant: str | None, store: str | None, author: str | None) -> dict[str, Any]:
        """Undo an edit in its store: the same."""

    async def redo(self, edit: str, tenant: str | None, store: str | None, author: str | None) -> dict[str, Any]:
        """Put an undone edit in again, in its store: the same."""

    async def unload(self, store: str, tenant: str | None) -> dict[str, Any]:
        """Serve a folder no longer: the same."""

    async def forget(self, tenant: str) -> dict[str, Any]:
        """Know a tenant and its folders no longer: the same."""

    async def listing(self, tenant: str | None, everything: bool) -> dict[str, Any]:
        """The `version`, the `tenants`, and the `edits` that are served to a tenant, or all, with those `undone`."""

    async def narrow(self, tenant: str | None, everything: bool) -> dict[str, Any]:
        """The last hour's `requests` of a tenant, or of all, that were decided by a small margin."""

    async def why(self, prompt: str, tenant: str | None) -> dict[str, Any]:
        """The edits nearest to a prompt, and the one that answers it."""


def edits_router(edits: ServedEdits, log: str = "corrigenda") -> Any:
    """A `fastapi.APIRouter` of the routes: `docs/serving/http.md` has the table.

    Each asks `access` who sends the request; a change is logged with who made it and from where, by the logger `log`.
    """
    from fastapi import APIRouter, Request
    from fastapi.responses import HTMLResponse, JSONResponse

    router, logger = APIRouter(tags=["edits"]), logger_of(log)

    async def answered(asked: Callable[[], Awaitable[dict[str, Any]]]) -> JSONResponse:
        try:
            return JSONResponse(await asked())
        except CorrigendaError as error:
            status = getattr(error, "status", 422)
            return JSONResponse(error_body(edits.without_paths(str(error)), status), status_code=status)
        except Exception:
            logger.exception("A request for edits failed.")
            told = "The request failed inside the server, whose log has the reason."
            return JSONResponse(error_body(told, 500), status_code=500)

    async def changed(
        request: Request,
        what: str,
        given: str | None,
        change: Callable[[str | None, Caller], Awaitable[dict[str, Any]]],
    ) -> dict[str, Any]:
        caller = edits.access.caller(request, changing=True)
        tenant = edits.access.tenant(tenant_named(request.scope["headers"]), given)
        found = await change(tenant, caller)
        source = "-" if request.client is None else request.client.host
        logger.info(
            "%s by %s from %s: version %s, added %d, removed %d",
            *(what, shown(caller.name), source, found["version"], len(found["added"]), len(found["removed"])),
        )
        return found

    @router.get("/v1/edits")
    async def listing(request: Request) -> JSONResponse:
        async def asked() -> dict[str, Any]:
            caller = edits.access.caller(request, changing=False)
            query = _query(request, {"tenant"})
            tenant = edits.access.tenant(tenant_named(request.scope["headers"]), query.get("tenant"))
            return await edits.listing(tenant, everything=tenant is None and caller.may_change)

        return await answered(asked)

    @router.get("/v1/edits/narrow")
    async def narrow(request: Request) -> JSONResponse:
        async def asked() -> dict[str, Any]:
            edits.access.caller(request, changing=True)  # what others asked is for those who answer for it
            query = _query(request, {"tenant"})
            tenant = edits.access.tenant(tenant_named(request.scope["headers"]), query.get("tenant"))
            return await edits.narrow(tenant, everything=tenant is None)

        return await answered(asked)

    @router.post("/v1/edits/redo")
    async def redo(request: Request) -> JSONResponse:
        async def asked() -> dict[str, Any]:
            edits.access.caller(request, changing=True)
            body = _fields(await _body(request), {"id", "tenant", "store", "author"}, "The body", unbounded={"id"})
            name, tenant, author = _required(body, "id", "The body"), body.get("tenant"), body.get("author")
            _check_name("tenant", tenant)
            _check_name("author", author)

            async def change(owner: str | None, caller: Caller) -> dict[str, Any]:
                return await edits.redo(name, owner, body.get("store"), _author(caller, author))

            return await changed(request, f"redo of {shown(name)}", tenant, change)

        return await answered(asked)

    @router.get("/edits", include_in_schema=False)
    async def page(request: Request) -> HTMLResponse:
        return HTMLResponse(PAGE, headers=HEADERS)

    @router.post("/v1/edits")
    async def load(request: Request) -> JSONResponse:
        async def asked() -> dict[str, Any]:
            edits.access.caller(request, changing=True)  # before anything is read of it
            body = _fields(await _body(request), {"store", "tenant", "snapshot"}, "The body")
            store, tenant = _required(body, "store", "The body"), body.get("tenant")
            _check_name("tenant", tenant)
            snapshot = None if "snapshot" not in body else _snapshot(body["snapshot"])
            what = f"load of {shown(store)}" + (f" at {snapshot}" if snapshot else "")
            return await changed(request, what, tenant, lambda owner, caller: edits.load(store, owner, snapshot))

        return await answered(asked)

    @router.post("/v1/snapshots")
    async def stage(request: Request) -> JSONResponse:
        async def asked() -> dict[str, Any]:
            edits.access.caller(request, changing=True)
            body = _fields(await _body(request), {"store", "tenant", "snapshot"}, "The body")
            store, tenant = _required(body, "store", "The body"), body.get("tenant")
            _check_name("tenant", tenant)
            snapshot = _snapshot(_required(body, "snapshot", "The body"))
            what = f"staging of {shown(store)} at {snapshot}"
            return await changed(request, what, tenant, lambda owner, caller: edits.stage(store, owner, snapshot))

        return await answered(asked)

    async def by_store(
        request: Request, what: str, change: Callable[[str, str | None], Awaitable[dict[str, Any]]]
    ) -> JSONResponse:
        """A change of the folder that a query names, and nothing else in it but its tenant."""

        async def asked() -> dict[str, Any]:
            query = _query(request, {"store", "tenant"})
            store = _required(query, "store", "The query")
            told = f"{what} of {shown(store)}"
            return await changed(request, told, query.get("tenant"), lambda owner, caller: change(store, owner))

        return await answered(asked)

    @router.delete("/v1/snapshots")
    async def drop_staged(request: Request) -> JSONResponse:
        return await by_store(request, "dropping of what was staged", edits.drop_staged)

    @router.get("/v1/edits/why")
    async def why(request: Request) -> JSONResponse:
        async def asked() -> dict[str, Any]:
            edits.access.caller(request, changing=False)
            query = _query(request, {"prompt", "tenant"})
            tenant = edits.access.tenant(tenant_named(request.scope["headers"]), query.get("tenant"))
            return await edits.why(_required(query, "prompt", "The query"), tenant)

        return await answered(asked)

    @router.delete("/v1/edits")
    async def undo_by_query(request: Request) -> JSONResponse:
        return await undone(request, None)

    @router.delete("/v1/edits/{edit:path}")
    async def undo(edit: str, request: Request) -> JSONResponse:
        return await undone(request, edit)

    async def undone(request: Request, edit: str | None) -> JSONResponse:
        async def asked() -> dict[str, Any]:
            names = {"tenant", "store", "author"} | ({"id"} if edit is None else set())
            query = _query(request, names, unbounded={"id"})
            name = _required(query, "id", "The query") if edit is None else edit
            author = query.get("author")
            _check_name("author", author)

            async def change(tenant: str | None, caller: Caller) -> dict[str, Any]:
                return await edits.undo(name, tenant, query.get("store"), _author(caller, author))

            return await changed(request, f"undo of {shown(name)}", query.get("tenant"), change)

        return await answered(asked)

    @router.delete("/v1/stores")
    async def unload(request: Request) -> JSONResponse:
        return await by_store(request, "unload", edits.unload)

    @router.delete("/v1/tenants")
    async def forget(request: Request) -> JSONResponse:
        async def asked() -> dict[str, Any]:
            query = _query(request, {"tenant"})

            async def change(tenant: str | None, caller: Caller) -> dict[str, Any]:
                if tenant is None:
                    raise Malformed('The query must hold "tenant".')
                return await edits.forget(tenant)

            return await changed(request, "a tenant's end", query.get("tenant"), change)

        return await answered(asked)

    return router


def _snapshot(name: str) -> Snapshot:
    try:
        return Snapshot.parse(name)
    except CorrigendaError as error:
        raise Malformed(str(error)) from None


def _check_name(what: str, name: str | None) -> None:
    try:
        if name is not None:
            checked_name(what, name)
    except CorrigendaError as error:
        raise Malformed(str(error)) from None


def _author(caller: Caller, given: str | None) -> str | None:
    """Who a change is recorded as: the key's holder, where keys have names, or what this machine's user says."""
    if caller.name in ("key", "this machine", "anybody"):
        return given
    if given not in (None, caller.name):
        raise Malformed("The author is whoever holds the key: leave the field out.")
    return caller.name


def _query(request: Any, known: set[str], unbounded: Container[str] = ()) -> dict[str, str]:
    """The fields of a query; one that is there twice is refused."""
    pairs = request.query_params.multi_items()
    if len({name for name, _ in pairs}) < len(pairs):
        raise Malformed("The query holds a field twice.")
    return _fields(dict(pairs), known, "The query", unbounded)


async def _body(request: Any) -> Any:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a page of another site may send any other kind without being asked
        raise ServingError("The body must be JSON, with the header Content-Type: application/json.", 415)
    raw = b""
    async for part in request.stream():
        raw += part
        if len(raw) > _LONGEST_BODY:
            raise Malformed(f"The body is longer than {_LONGEST_BODY} bytes.")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise Malformed('The body must be a JSON object such as {"store": "a folder of edits"}.') from None


def _fields(given: Any, known: set[str], where: str, unbounded: Container[str] = ()) -> dict[str, str]:
    """What was given by name; null is as if it were not given."""
    if not isinstance(given, Mapping):
        raise Malformed(f"{where} must be a JSON object.")
    for name, value in given.items():
        if name not in known:
            raise Malformed(f'{where} has an unknown field "{shown(name[:100])}": use {", ".join(sorted(known))}.')
        nul = isinstance(value, str) and "\0" in value and name not in unbounded
        if value is not None and (not isinstance(value, str) or not value or nul):
            raise Malformed(f'{where} must hold "{name}" as text.')
    return {name: value for name, value in given.items() if value is not None}


def _required(given: dict[str, str], name: str, where: str) -> str:
    if name not in given:
        raise Malformed(f'{where} must hold "{name}".')
    return given[name]
