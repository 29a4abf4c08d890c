"""Reads files of edits: JSON Lines, or JSON with a list of records."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import CorrigendaError, FieldError
from .edit import Edit, kind_of, unique_subjects
from .formats import FORMATS, TARGETS, edit_from

_LIST_NAMES = ("edits", "records", "data", "examples")
"""Where an object that is a whole file may hold its list of records."""

_TOO_DEEP = "objects or lists are nested too deeply"

_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')
"""Brackets of JSON; texts are matched too, for those in them to be skipped."""

STANDARD_INPUT = Path("-")


def load_edits(path: str | Path, *, unique_subject: bool = False, limit: int | None = None) -> list[Edit]:
    """Read every edit of a JSON Lines or JSON file, in file order; "-" is standard input.

    Each record's format is known by its fields (`FORMATS`). With `unique_subject` only the first record of
    each subject is kept; of what is left, only the first `limit`. The whole file is checked in any case.
    """
    if limit is not None and limit < 1:
        raise CorrigendaError(f"The limit must be at least 1, not {limit}.")
    path = Path(path)
    text = read_text(path)
    stem = "stdin" if path == STANDARD_INPUT else path.stem
    edits: list[Edit] = []
    number_of_id: dict[str | None, int] = {}
    for number, (place, record) in enumerate(records(path, text), start=1):
        try:
            edit = edit_from(record, default_id=f"{stem}-{number:05d}")
        except FieldError as error:
            field = error.field if error.field in record else _as_spelt(error.field, path, text)
            raise CorrigendaError(f'{place}: the field "{field}" {error.problem}.') from None
        except RecursionError:
            raise CorrigendaError(f"{place}: {_TOO_DEEP}.") from None
        earlier = number_of_id.setdefault(edit.id, number)
        if earlier != number:
            raise CorrigendaError(f'{place}: the id "{edit.id}" is already that of record {earlier}.')
        edits.append(edit)
    if unique_subject:
        edits = unique_subjects(edits)
    return edits[:limit]


def _as_spelt(field: str, path: Path, text: str) -> str:
    """The name that a file's records give to a field, which one of them lacks; where none has it, our own."""
    if field not in TARGETS:
        return field
    with contextlib.suppress(CorrigendaError):  # of a later record, whose turn it is not yet
        for _, record in records(path, text):
            for name in TARGETS:
                if name in record:
                    return name
    return "target"


def file_name(path: Path) -> str:
    """What to call a file in a sentence."""
    return "standard input" if path == STANDARD_INPUT else str(path)


def read_text(path: Path) -> str:
    """What a file holds, or standard input for "-"."""
    try:
        content = _standard_input() if path == STANDARD_INPUT else path.read_bytes()
    except FileNotFoundError:
        raise CorrigendaError(f"There is no file {path}.") from None
    except IsADirectoryError:
        raise CorrigendaError(f"{path} is a folder, not a file of edits.") from None
    except OSError as error:
        raise CorrigendaError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CorrigendaError(f"{file_name(path)}, line {line}: the text is not UTF-8.") from None


def _standard_input() -> bytes:
    if sys.stdin is None or sys.stdin.closed:
        raise CorrigendaError("Standard input is closed: pipe something in, or name a file.")
    return sys.stdin.buffer.read()


def records(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each record of the file, with the place it has there, in words."""
    count = 0
    for count, (line, record) in enumerate(_values(path, text), start=1):
        place = f"{file_name(path)}, record {count}" + (f" (line {line})" if line else "")
        if not isinstance(record, Mapping):
            raise CorrigendaError(f"{place}: a record must be an object, not {kind_of(record)}.")
        yield place, record
    if not count:
        raise CorrigendaError(f"{file_name(path)} holds no records.")


def _values(path: Path, text: str) -> Iterator[tuple[int | None, Any]]:
    """Each JSON value that should be a record, with its line if the file has one on each."""
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        return
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        # Only one value over many lines begins with a list, or with a brace that is alone on its line.
        if text.lstrip().startswith("[") or lines[0][1].strip() == "{":
            if isinstance(error, json.JSONDecodeError):
                raise _broken_json(f"{file_name(path)}, line {error.lineno}, column {error.colno}", error) from None
            raise _broken_json(f"{file_name(path)}, line {_line_of(error, text)}", error) from None
    else:
        listed = _listed(whole)
        yield from [(None, value) for value in listed] if listed is not None else [(lines[0][0], whole)]
        return
    for count, (number, line) in enumerate(lines, start=1):
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            column = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            raise _broken_json(f"{file_name(path)}, record {count} (line {number}{column})", error) from None


def _broken_json(place: str, error: ValueError | RecursionError) -> CorrigendaError:
    """What `json.loads` cannot read: broken JSON, or sound JSON beyond what Python takes."""
    if isinstance(error, json.JSONDecodeError):
        return CorrigendaError(f"{place}: the JSON is broken ({error.msg}).")
    if isinstance(error, RecursionError):
        return CorrigendaError(f"{place}: {_TOO_DEEP}.")
    return CorrigendaError(f"{place}: a number has more than {sys.get_int_max_str_digits()} digits.")


def _line_of(error: ValueError | RecursionError, text: str) -> int:
    """The line of what JSON allows and Python does not take, which such an error does not tell."""
    if isinstance(error, RecursionError):
        depth, deepest, place = 0, 0, 0
        for found in _BRACKETS.finditer(text):
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
            if depth > deepest:
                deepest, place = depth, found.start()
    else:
        numbers = re.finditer(rf"\d{{{sys.get_int_max_str_digits() + 1},}}", text)
        place = next((found.start() for found in numbers), 0)
    return text.count("\n", 0, place) + 1


def _listed(whole: Any) -> list[Any] | None:
    """The list of records that a whole file is or holds, if it does."""
    if isinstance(whole, Mapping) and not any(form.matches(whole) for form in FORMATS):
        whole = next((whole[name] for name in _LIST_NAMES if isinstance(whole.get(name), list)), None)
    return whole if isinstance(whole, list) else None
