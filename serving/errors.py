"""Errors of a server: a sentence for whoever asked, and the HTTP status that goes with it."""

from __future__ import annotations

from typing import Any

from ..editing.errors import CorrigendaError
from ..editing.shown import shown

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    507: "capacity_error",
}


class ServingError(CorrigendaError):
    """A request that cannot be met. `status` is the HTTP status of the answer."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Malformed(ServingError):
    """A request that says something else than is understood."""


def error_body(error: object, status: int) -> dict[str, Any]:
    """An error as OpenAI's clients read it. Half a pair of surrogates, which JSON can bring in, is no UTF-8."""
    message = shown(str(error))
    return {"error": {"message": message, "type": _TYPES.get(status, "invalid_request_error"), "code": status}}
