"""HTTP for edits: the routes under `/v1/edits`, and the header that says which edit answered. It knows no stack."""

# Not `from __future__ import annotations`: FastAPI reads those of the handlers, whose classes are imported when needed.

import json
import logging
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Protocol
from urllib.parse import quote

from ..editing.errors import CorrigendaError
from ..editing.shown import name as checked_name
from ..editing.shown import shown
from .access import Access, Caller
from .errors import ServingError

EDIT_HEADER = "x-corrigenda-edit"
VERSION_HEADER = "x-corrigenda-version"
TENANT_HEADER = "x-corrigenda-tenant"

logger = logging.getLogger("corrigenda")

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    507: "capacity_error",
}
_LONGEST_BODY = 64 * 1024


class ServedEdits(Protocol):
    """What the routes ask of a stack. Each may raise a CorrigendaError, best a ServingError with its status."""

    @property
    def access(self) -> Access:
        """Who may ask what."""

    def without_paths(self, text: str) -> str:
        """A sentence with folders called what clients call them."""

    async def load(self, store: str, tenant: str | None) -> dict[str, Any]:
        """Take in a folder of edits, or read it again: `version`, and ids that were `added` and `removed`."""

    async def undo(self, edit: str, tenant: str | None, store: str | None, author: str | None) -> dict[str, Any]:
        """Undo an edit in its store: the same."""

    async def unload(self, store: str, tenant: str | None) -> dict[str, Any]:
        """Serve a folder no longer: the same."""

    async def forget(self, tenant: str) -> dict[str, Any]:
        """Know a tenant and its folders no longer: the same."""

    async def listing(self, tenant: str | None, everything: bool) -> dict[str, Any]:
        """The `version`, the `tenants` and the `edits` that are served to a tenant, or all."""

    async def why(self, prompt: str, tenant: str | None) -> dict[str, Any]:
        """The edits nearest to a prompt, and the one that answers it."""


def edits_router(edits: ServedEdits) -> Any:
    """A `fastapi.APIRouter` of the routes: `serving/README.md` has the table.

    Each asks `access` who sends the request; a change is logged with who made it and from where.
    """
    from fastapi import APIRouter, Request
    from fastapi.responses import JSONResponse

    router = APIRouter(tags=["edits"])

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

    @router.post("/v1/edits")
    async def load(request: Request) -> JSONResponse:
        async def asked() -> dict[str, Any]:
            edits.access.caller(request, changing=True)  # before anything is read of it
            body = _fields(await _body(request), {"store", "tenant"}, "The body")
            store, tenant = _required(body, "store", "The body"), body.get("tenant")
            _check_name("tenant", tenant)
            what = f"load of {shown(store)}"
            return await changed(request, what, tenant, lambda owner, caller: edits.load(store, owner))

        return await answered(asked)

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
        async def asked() -> dict[str, Any]:
            query = _query(request, {"store", "tenant"})
            store = _required(query, "store", "The query")
            what = f"unload of {shown(store)}"
            return await changed(request, what, query.get("tenant"), lambda owner, caller: edits.unload(store, owner))

        return await answered(asked)

    @router.delete("/v1/tenants")
    async def forget(request: Request) -> JSONResponse:
        async def asked() -> dict[str, Any]:
            query = _query(request, {"tenant"})

            async def change(tenant: str | None, caller: Caller) -> dict[str, Any]:
                if tenant is None:
                    raise _Malformed('The query must hold "tenant".')
                return await edits.forget(tenant)

            return await changed(request, "a tenant's end", query.get("tenant"), change)

        return await answered(asked)

    return router


def _check_name(what: str, name: str | None) -> None:
    try:
        if name is not None:
            checked_name(what, name)
    except CorrigendaError as error:
        raise _Malformed(str(error)) from None


def _author(caller: Caller, given: str | None) -> str | None:
    """Who a change is recorded as: the key's holder, where keys have names, or what this machine's user says."""
    if caller.name in ("key", "this machine", "anybody"):
        return given
    if given not in (None, caller.name):
        raise _Malformed("The author is whoever holds the key: leave the field out.")
    return caller.name


def tenant_named(headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    """The tenant that a request's headers name. Two of them are refused: which one a gateway set is not to be seen."""
    named = [value for name, value in headers if name.lower() == TENANT_HEADER.encode()]
    if len(named) > 1:
        raise _Malformed(f"The header {TENANT_HEADER} was sent twice.")
    return named[0].decode("latin-1") or None if named else None


def _query(request: Any, known: set[str], unbounded: Container[str] = ()) -> dict[str, str]:
    """The fields of a query; one that is there twice is refused."""
    pairs = request.query_params.multi_items()
    if len({name for name, _ in pairs}) < len(pairs):
        raise _Malformed("The query holds a field twice.")
    return _fields(dict(pairs), known, "The query", unbounded)


def error_body(error: object, status: int) -> dict[str, Any]:
    """An error as OpenAI's clients read it. Half a pair of surrogates, which JSON can bring in, is no UTF-8."""
    message = shown(str(error))
    return {"error": {"message": message, "type": _TYPES.get(status, "invalid_request_error"), "code": status}}


class _Malformed(CorrigendaError):
    """A request that says something else than the route understands."""

    status = 400


async def _body(request: Any) -> Any:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a page of another site may send any other kind without being asked
        raise ServingError("The body must be JSON, with the header Content-Type: application/json.", 415)
    raw = b""
    async for part in request.stream():
        raw += part
        if len(raw) > _LONGEST_BODY:
            raise _Malformed(f"The body is longer than {_LONGEST_BODY} bytes.")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise _Malformed('The body must be a JSON object such as {"store": "a folder of edits"}.') from None


def _fields(given: Any, known: set[str], where: str, unbounded: Container[str] = ()) -> dict[str, str]:
    """What was given by name; null is as if it were not given."""
    if not isinstance(given, Mapping):
        raise _Malformed(f"{where} must be a JSON object.")
    for name, value in given.items():
        if name not in known:
            raise _Malformed(f'{where} has an unknown field "{shown(name[:100])}": use {", ".join(sorted(known))}.')
        nul = isinstance(value, str) and "\0" in value and name not in unbounded
        if value is not None and (not isinstance(value, str) or not value or nul):
            raise _Malformed(f'{where} must hold "{name}" as text.')
    return {name: value for name, value in given.items() if value is not None}


def _required(given: dict[str, str], name: str, where: str) -> str:
    if name not in given:
        raise _Malformed(f'{where} must hold "{name}".')
    return given[name]


class HttpRequest:
    """What is known of the HTTP request in hand: whose it is, and which edits answer its prompts, None for none.

    version: of the edits among which that was decided, for the last prompt
    """

    def __init__(self, tenant: str | None = None) -> None:
        self.tenant = tenant
        self.edits: list[str | None] = []
        self.version: int | None = None

    def decided(self, edit: str | None, version: int) -> None:
        """Note what was decided for the next prompt."""
        self.edits.append(edit)
        self.version = version

    @property
    def header(self) -> str:
        """The ids in the order of the prompts; `-` for none. What no header can hold is percent-encoded."""
        return ",".join("-" if edit is None else _encoded(edit) for edit in self.edits)


def _encoded(edit: str) -> str:
    return "%2D" if edit == "-" else quote(edit, safe="!#$&'()*+/:;=?@[]^_`{|}~")


_current_request: ContextVar[HttpRequest | None] = ContextVar("corrigenda_asked", default=None)


def current_request() -> HttpRequest | None:
    """The HTTP request that this task or thread works for, if any."""
    return _current_request.get()


class EditHeader:
    """ASGI middleware: tells `current_request()` the tenant of each HTTP request, and the client what answered it.

    The tenant is named by the header `x-corrigenda-tenant`. A response's start is held back until its first piece of
    body, for some servers begin to answer before they have looked at the prompts.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            request = HttpRequest(tenant_named(scope["headers"]))
        except CorrigendaError as error:
            from starlette.responses import JSONResponse

            await JSONResponse(error_body(error, 400), status_code=400)(scope, receive, send)
            return
        start: Any = None

        async def answer(message: Any) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            if start is not None:
                if request.edits and start["status"] < 400:  # else nothing was answered
                    told = {EDIT_HEADER: request.header, VERSION_HEADER: str(request.version)}
                    added = [(name.encode(), value.encode("ascii")) for name, value in told.items()]
                    start = {**start, "headers": [*start.get("headers", ()), *added]}
                held, start = start, None
                await send(held)
            await send(message)

        token = _current_request.set(request)
        try:
            await self.app(scope, receive, answer)
        finally:
            _current_request.reset(token)
