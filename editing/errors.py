"""The errors that a user is meant to read."""

from __future__ import annotations


class CorrigendaError(ValueError):
    """An error whose message is one sentence for the user; the command line prints it without a traceback."""


class FieldError(CorrigendaError):
    """One field of an edit is missing or wrong; a reader of files can add where the field stands."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem

    def __str__(self) -> str:
        return f'The field "{self.field}" {self.problem}.'
