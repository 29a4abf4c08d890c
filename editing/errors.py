"""The errors and warnings that a user is meant to read."""

from __future__ import annotations

import sys
import warnings

# Whose calls may lie between the user's line and the warning.
_LIBRARIES = ("corrigenda", "torch", "transformers", "peft", "contextlib")


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


def warn_user(sentence: str, category: type[Warning] = UserWarning) -> None:
    """Warn of the line of the user's code that asked, however many calls of libraries lie between."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        level, frame = level + 1, frame.f_back
    warnings.warn(sentence, category, stacklevel=level)
