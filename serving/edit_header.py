"""What a response says of the edits that answered it: in headers, and in the body where they are too many for one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any
from urllib.parse import quote

from .errors import Malformed, ServingError, error_body

EDIT_HEADER = "x-corrigenda-edit"
VERSION_HEADER = "x-corrigenda-version"
SNAPSHOT_HEADER = "x-corrigenda-snapshot"
TENANT_HEADER = "x-corrigenda-tenant"
EXPOSE_HEADER = "access-control-expose-headers"

LONGEST_HEADER = 2048
"""Bytes of ids in a header. Clients and proxies refuse a response whose headers are longer than 4 or 8 KB in all."""

_SAFE = "!#$&'()*+/:;=?@[]^_`{|}~"


class HttpRequest:
    """What is known of the HTTP request in hand: whose it is, and which edits answer its prompts, None for none.

    version, snapshot: of the edits among which that was decided, for the last prompt; a version counts this server's
    changes, a snapshot is the same on every server
    """

    def __init__(self, tenant: str | None = None) -> None:
        self.tenant = tenant
        self.edits: list[str | None] = []
        self.version: int | None = None
        self.snapshot = ""

    def decided(self, edit: str | None, version: int, snapshot: str = "") -> int:
        """Note what was decided for the next prompt; gives its place among them."""
        self.edits.append(edit)
        self.version, self.snapshot = version, snapshot
        return len(self.edits) - 1

    @property
    def header(self) -> str:
        """The ids in the order of the prompts; `-` for none. What no header can hold is percent-encoded.

        Where that is longer than `LONGEST_HEADER`, `*` and the number of prompts that an edit answers.
        """
        ids = ",".join("-" if edit is None else _encoded(edit) for edit in self.edits)
        return ids if len(ids) <= LONGEST_HEADER else f"*{sum(edit is not None for edit in self.edits)}"

    def to_dict(self) -> dict[str, Any]:
        """The same for a body: the edit of each prompt, null for none."""
        return {"edits": self.edits, "version": self.version, "snapshot": self.snapshot}


def _encoded(edit: str) -> str:
    if edit == "-" or edit.startswith("*"):  # which mean something else
        return f"%{ord(edit[0]):02X}{quote(edit[1:], safe=_SAFE)}"
    return quote(edit, safe=_SAFE)


_current_request: ContextVar[HttpRequest | None] = ContextVar("corrigenda_asked", default=None)


def current_request() -> HttpRequest | None:
    """The HTTP request that this task or thread works for, if any."""
    return _current_request.get()


def tenant_named(headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    """The tenant that a request's headers name. Two of them are refused: which one a gateway set is not to be seen."""
    named = [value for name, value in headers if name.lower() == TENANT_HEADER.encode()]
    if len(named) > 1:
        raise Malformed(f"The header {TENANT_HEADER} was sent twice.")
    return named[0].decode("latin-1") or None if named else None


class EditHeader:
    """ASGI middleware: tells `current_request()` the tenant of each HTTP request, and the client what answered it.

    The tenant is named by the header `x-corrigenda-tenant`. A response's start is held back until its first piece of
    body, for some servers begin to answer before they have looked at the prompts. Pages of other origins may read these
    headers. Where the ids are too long for one, a JSON body has them as `corrigenda`, and an event stream begins with
    them in a comment. A stream's header says which edits were to answer; where one was not said, a comment before its
    end says which were.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        named = {name.lower(): value for name, value in scope["headers"]}
        try:
            request = HttpRequest(tenant_named(scope["headers"]))
        except ServingError as error:
            from starlette.responses import JSONResponse

            refusal = JSONResponse(error_body(error, error.status), status_code=error.status)
            await refusal(scope, receive, send)
            return
        response = _Response(request, b"origin" in named, send)
        token = _current_request.set(request)
        try:
            await self.app(scope, receive, response)
        finally:
            _current_request.reset(token)


class _Response:
    """Sends the messages of a response on, with what it is to say of edits."""

    def __init__(self, request: HttpRequest, exposing: bool, send: Any) -> None:
        self._request = request
        self._exposing = exposing
        self._send = send
        self._start: dict[str, Any] | None = None
        self._body: bytes | None = None
        self._told: list[str | None] | None = None  # the edits that a stream's header names

    async def __call__(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        if self._body is None and self._start is not None:
            message = await self._begin(message)
        if self._body is None:
            await self._send(self._corrected(message))
            return
        self._body += message.get("body", b"")
        if not message.get("more_body"):
            await self._whole(message)

    async def _begin(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send the start, unless the body has to be whole for it; returns the first piece of the body."""
        start, request = self._start, self._request
        answered = bool(request.edits) and start["status"] < 400
        kind = _header(start, b"content-type").partition(b";")[0].strip()
        if answered and request.header.startswith("*") and not _header(start, b"content-encoding"):
            if kind == b"application/json":
                self._body = b""
                return message
            if kind == b"text/event-stream":  # of which a comment is no event
                message = self._commented(message)
        self._start = None
        if answered and kind == b"text/event-stream" and not _header(start, b"content-encoding"):
            self._told = list(request.edits)
        await self._send({**start, "headers": self._headers(start)} if answered else start)
        return message

    def _corrected(self, message: dict[str, Any]) -> dict[str, Any]:
        """The last piece of a stream, with the edits that answered where they are not those of its header."""
        ends = b"data: [DONE]" in message.get("body", b"") or not message.get("more_body")
        if self._told is None or self._told == self._request.edits or not ends:
            return message
        self._told = None
        return self._commented(message)

    def _commented(self, message: dict[str, Any]) -> dict[str, Any]:
        told = f": corrigenda {json.dumps(self._request.to_dict())}\n\n".encode()
        return {**message, "body": told + message.get("body", b"")}

    async def _whole(self, message: dict[str, Any]) -> None:
        """Send a JSON body with the ids in it, and its start before."""
        body, self._body = self._body, None
        start, self._start = self._start, None
        try:
            said = json.loads(body)
        except ValueError:
            said = None
        if isinstance(said, dict):
            body = json.dumps({**said, "corrigenda": self._request.to_dict()}, ensure_ascii=False).encode()
        headers = [(n, v) for n, v in self._headers(start) if n.lower() != b"content-length"]
        await self._send({**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
        await self._send({**message, "body": body})

    def _headers(self, start: dict[str, Any]) -> list[tuple[bytes, bytes]]:
        request = self._request
        told = {
            EDIT_HEADER: request.header,
            VERSION_HEADER: str(request.version),
            SNAPSHOT_HEADER: request.snapshot,
        }
        headers = list(start.get("headers", ()))
        if self._exposing and _header(start, EXPOSE_HEADER.encode()) != b"*":
            before = _header(start, EXPOSE_HEADER.encode())
            headers = [(n, v) for n, v in headers if n.lower() != EXPOSE_HEADER.encode()]
            told[EXPOSE_HEADER] = ", ".join([*filter(None, [before.decode("latin-1")]), *told])
        return [*headers, *((name.encode(), value.encode("latin-1")) for name, value in told.items())]


def _header(start: dict[str, Any], name: bytes) -> bytes:
    return next((bytes(value) for found, value in start.get("headers", ()) if found.lower() == name), b"")
