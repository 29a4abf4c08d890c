"""HTTP for edits: the routes under `/v1/edits`. It knows no stack."""

# Not `from __future__ import annotations`: FastAPI reads those of the handlers, whose classes are imported when needed.

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from ..editing.errors import CorrigendaError

_TYPES = {
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    507: "capacity_error",
}
_LONGEST_BODY = 64 * 1024


class ServedEdits(Protocol):
    """What the routes ask of a stack. Each may raise a CorrigendaError, best a ServingError with its status."""

    async def load(self, store: str, tenant: str | None) -> dict[str, Any]:
        """Take in a folder of edits, or read it again: `version`, and ids that were `added` and `removed`."""

    async def undo(self, edit: str, tenant: str | None, store: str | None, author: str | None) -> dict[str, Any]:
        """Undo an edit in its store: the same."""

    async def listing(self) -> dict[str, Any]:
        """The `version`, the `tenants` and all `edits` that are served."""

    async def why(self, prompt: str, tenant: str | None) -> dict[str, Any]:
        """The edits nearest to a prompt, and the one that answers it."""


def edits_router(edits: ServedEdits) -> Any:
    """A `fastapi.APIRouter`: GET and POST /v1/edits, DELETE /v1/edits/{id}, GET /v1/edits/why."""
    from fastapi import APIRouter, Request
    from fastapi.responses import JSONResponse

    router = APIRouter(tags=["edits"])

    async def response(work: Callable[[], Awaitable[dict[str, Any]]]) -> JSONResponse:
        try:
            return JSONResponse(await work())
        except CorrigendaError as error:
            status = getattr(error, "status", 422)
            return JSONResponse(error_body(error, status), status_code=status)

    @router.get("/v1/edits")
    async def listing(request: Request) -> JSONResponse:
        return await response(edits.listing)

    @router.post("/v1/edits")
    async def load(request: Request) -> JSONResponse:
        async def work() -> dict[str, Any]:
            body = _fields(await _body(request), {"store", "tenant"}, "The body")
            return await edits.load(_required(body, "store", "The body"), body.get("tenant"))

        return await response(work)

    @router.get("/v1/edits/why")
    async def why(request: Request) -> JSONResponse:
        async def work() -> dict[str, Any]:
            query = _fields(dict(request.query_params), {"prompt", "tenant"}, "The query")
            return await edits.why(_required(query, "prompt", "The query"), query.get("tenant"))

        return await response(work)

    @router.delete("/v1/edits/{edit:path}")
    async def undo(edit: str, request: Request) -> JSONResponse:
        async def work() -> dict[str, Any]:
            query = _fields(dict(request.query_params), {"tenant", "store", "author"}, "The query")
            return await edits.undo(edit, query.get("tenant"), query.get("store"), query.get("author"))

        return await response(work)

    return router


def error_body(error: Exception, status: int) -> dict[str, Any]:
    """An error as OpenAI's clients read it. Half a pair of surrogates, which JSON can bring in, is no UTF-8."""
    message = str(error).encode(errors="backslashreplace").decode()
    return {"error": {"message": message, "type": _TYPES.get(status, "invalid_request_error"), "code": status}}


class _Malformed(CorrigendaError):
    """A request that says something else than the route understands."""

    status = 400


async def _body(request: Any) -> Any:
    raw = b""
    async for part in request.stream():
        raw += part
        if len(raw) > _LONGEST_BODY:
            raise _Malformed(f"The body is longer than {_LONGEST_BODY} bytes.")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise _Malformed('The body must be a JSON object such as {"store": "a folder of edits"}.') from None


def _fields(given: Any, known: set[str], where: str) -> dict[str, str]:
    """What was given by name; null is as if it were not given."""
    if not isinstance(given, Mapping):
        raise _Malformed(f"{where} must be a JSON object.")
    for name, value in given.items():
        if name not in known:
            raise _Malformed(f'{where} has an unknown field "{name}": use {", ".join(sorted(known))}.')
        if value is not None and (not isinstance(value, str) or not value or "\0" in value):
            raise _Malformed(f'{where} must hold "{name}" as text.')
    return {name: value for name, value in given.items() if value is not None}


def _required(given: dict[str, str], name: str, where: str) -> str:
    if name not in given:
        raise _Malformed(f'{where} must hold "{name}".')
    return given[name]
