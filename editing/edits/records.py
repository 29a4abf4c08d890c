"""The records of a file, whatever it is written in: JSON, JSON Lines, CSV or Parquet, compressed or not."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CorrigendaError
from .edit import kind_of
from .formats import FORMATS, REPHRASES, TARGETS

STANDARD_INPUT = Path("-")

TOO_DEEP = "objects or lists are nested too deeply"

_LIST_NAMES = ("edits", "records", "data", "examples")
"""Where an object that is a whole file may hold its list of records."""

_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')
"""Brackets of JSON; texts are matched too, for those in them to be skipped."""

_TABLES = {".csv": ",", ".tsv": "\t"}

RECORDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""What files of records are named by their suffix; one of another name is known by what it holds."""

_TEXT_COLUMNS = frozenset(
    ("id", "prompt", "question", "src", "update", "text", "target", "target_new", "alt", "ans", "labels", "answer")
)
"""Columns of a table whose cells are texts as they stand; in others a cell may hold a list or an object in JSON."""

_COLUMNS = _TEXT_COLUMNS.union(TARGETS, REPHRASES, ("subject", "localities", "protected", "ground_truth"))
"""Columns that are known in capitals too: spreadsheets write them so."""


class Source(NamedTuple):
    """A file's name in sentences, its name without suffixes, the last suffix, and its bytes, decompressed."""

    name: str
    stem: str
    suffix: str
    content: bytes


def read_source(path: Path) -> Source:
    """What a file holds, or standard input for "-"."""
    name = file_name(path)
    try:
        content = _standard_input() if path == STANDARD_INPUT else path.read_bytes()
    except FileNotFoundError:
        raise CorrigendaError(f"There is no file {path}.") from None
    except IsADirectoryError:
        raise CorrigendaError(f"{path} is a folder, not a file of edits.") from None
    except OSError as error:
        raise CorrigendaError(f"{path} cannot be read: {error.strerror}.") from None
    if path == STANDARD_INPUT:
        path = Path("stdin")
    if path.suffix.lower() == ".gz":
        path = path.with_suffix("")
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            raise CorrigendaError(f"{name} is compressed, and its end is missing or damaged.") from None
    return Source(name, path.stem[:200], path.suffix.lower(), content)


def file_name(path: Path) -> str:
    """What to call a file in a sentence."""
    return "standard input" if path == STANDARD_INPUT else str(path)


def text_of(source: Source) -> str:
    """A source as text: UTF-8, or what its byte order mark says."""
    wide = source.content.startswith((b"\xff\xfe", b"\xfe\xff"))  # as the shell of Windows redirects
    try:
        return source.content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = source.content.count(b"\n", 0, error.start) + 1
        told = "16" if wide else "8: save it in that encoding, or convert it (iconv -f CP1252 -t UTF-8, say)"
        raise CorrigendaError(f"{source.name}, line {line}: the text is not UTF-{told}.") from None


def _standard_input() -> bytes:
    if sys.stdin is None or sys.stdin.closed:
        raise CorrigendaError("Standard input is closed: pipe something in, or name a file.")
    return sys.stdin.buffer.read()


def records(source: Source) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each record of a source, with the place it has there, in words."""
    if source.content.startswith(b"PAR1") or source.suffix == ".parquet":
        found: Iterator[tuple[int | None, Any]] = ((None, row) for row in _parquet(source))
    elif source.suffix in _TABLES:
        found = _table(source)
    else:
        found = _json(source.name, text_of(source))
    yield from numbered(source.name, found)


def numbered(name: str, values: Iterator[tuple[int | None, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each record among `values`, which come with their lines if they have one; raises where one is no record."""
    count = 0
    for count, (line, record) in enumerate(values, start=1):
        place = f"{name}, record {count}" + (f" (line {line})" if line else "")
        if not isinstance(record, Mapping):
            raise CorrigendaError(f"{place}: a record must be an object, not {kind_of(record)}.")
        yield place, record
    if not count:
        raise CorrigendaError(f"{name} holds no records.")


# Tables


def _table(source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table with a line of column names; an empty cell is a field that is not there."""
    text = text_of(source)
    if not text.strip():
        return
    heading, mark = text.lstrip().partition("\n")[0], _TABLES[source.suffix]
    if mark not in heading:  # spreadsheets write ";" where the comma stands in numbers, and tabs under any name
        mark = next((other for other in ";\t," if other in heading), mark)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    names: list[str] = []
    try:
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if not names:
                names = _column_names(source.name, row)
                continue
            if len(row) > len(names):
                raise CorrigendaError(
                    f"{source.name}, line {rows.line_num}: the row has {len(row)} cells for {len(names)} columns: put "
                    f'quotes around a cell that holds "{mark}".'
                )
            yield rows.line_num, {name: _cell(name, cell) for name, cell in zip(names, row) if cell.strip()}
    except csv.Error as error:
        raise CorrigendaError(f"{source.name}, line {rows.line_num}: the table is broken ({error}).") from None


def _column_names(name: str, row: list[str]) -> list[str]:
    names = [cell.strip() for cell in row]
    # "Prompt" is meant where there is no "prompt" besides; a name of our own that is spelt otherwise is left alone.
    lower = [column.lower() for column in names]
    names = [small if small in _COLUMNS and lower.count(small) == 1 else name for small, name in zip(lower, names)]
    for column in names:
        if names.count(column) > 1:
            raise CorrigendaError(f'{name}: two columns are named "{column}".')
    return names


def _cell(column: str, text: str) -> Any:
    if column not in _TEXT_COLUMNS and text.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


def _parquet(source: Source) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, BufferReader
        from pyarrow.parquet import read_table
    except ImportError:
        raise CorrigendaError(
            f"{source.name} is a Parquet file, which pyarrow reads: run `pip install 'corrigenda[parquet]'`."
        ) from None
    try:
        rows = read_table(BufferReader(source.content)).to_pylist()
    except (ArrowException, OSError):
        raise CorrigendaError(f"{source.name} is a Parquet file that is damaged or cut short.") from None
    return [plain(row) for row in rows]


def plain(value: Any) -> Any:
    """A row of a table as JSON would have it: times and decimals as text, arrays as lists, no empty cells."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if hasattr(value, "tolist"):  # a number or an array of numpy
        return plain(value.tolist())
    return value


# JSON


def _json(name: str, text: str) -> Iterator[tuple[int | None, Any]]:
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
                raise _broken_json(f"{name}, line {error.lineno}, column {error.colno}", error) from None
            raise _broken_json(f"{name}, line {_line_of(error, text)}", error) from None
    else:
        listed = _listed(whole)
        yield from [(None, value) for value in listed] if listed is not None else [(lines[0][0], whole)]
        return
    for count, (number, line) in enumerate(lines, start=1):
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            column = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            raise _broken_json(f"{name}, record {count} (line {number}{column})", error) from None


def _broken_json(place: str, error: ValueError | RecursionError) -> CorrigendaError:
    """What `json.loads` cannot read: broken JSON, or sound JSON beyond what Python takes."""
    if isinstance(error, json.JSONDecodeError):
        return CorrigendaError(f"{place}: the JSON is broken ({error.msg}).")
    if isinstance(error, RecursionError):
        return CorrigendaError(f"{place}: {TOO_DEEP}.")
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
