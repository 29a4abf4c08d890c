"""Errors of a server: a sentence for whoever asked, and the HTTP status that goes with it."""

from __future__ import annotations

from ..editing.errors import CorrigendaError


class ServingError(CorrigendaError):
    """A request that cannot be met. `status` is the HTTP status of the answer."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
