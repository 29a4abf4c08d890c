"""Reads edits out of files, and out of records that are at hand: JSON Lines, JSON, CSV, Parquet, datasets."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import CorrigendaError, FieldError, warn_user
from .edit import Edit, unique_subjects
from .formats import REPHRASES, TARGETS, UnknownFormError, read_record
from .identifiers import DistinctIds
from .records import TOO_DEEP, Source, numbered, plain, read_source, records

_KNOWN = (*TARGETS, *REPHRASES, "prompt", "subject", "localities", "ground_truth", "protected", "id")
"""Fields that an unknown one may be meant for."""


class LoadedEdits(list[Edit]):
    """Edits in the order of their records; `notices` are sentences on what was not taken as it stands."""

    def __init__(self, edits: Iterable[Edit] = (), notices: Iterable[str] = ()) -> None:
        super().__init__(edits)
        self.notices = list(notices)


def load_edits(
    source: str | Path | Iterable[Mapping[str, Any]], *, unique_subject: bool = False, limit: int | None = None
) -> LoadedEdits:
    """Read every edit of a file, in file order ("-" is standard input), or of records: a `datasets.Dataset`, dicts.

    A file is JSON Lines, JSON, CSV or Parquet, compressed by gzip or not; each record's form is known by its fields
    (`FORMATS`). With `unique_subject` only the first record of each subject is kept; of what is left, only the first
    `limit`. The whole file is checked in any case. Ids that repeat get a number, and `notices` of the result say
    which, what else was left out, and which fields mean nothing to an edit; each is a warning, too.
    """
    edits = read_edits(source, unique_subject=unique_subject, limit=limit)
    for notice in edits.notices:
        warn_user(notice)
    return edits


def read_edits(
    source: str | Path | Iterable[Mapping[str, Any]], *, unique_subject: bool = False, limit: int | None = None
) -> LoadedEdits:
    """The same for whoever shows the notices."""
    if limit is not None and limit < 1:
        raise CorrigendaError(f"The limit must be at least 1, not {limit}.")
    reading = _Reading()
    if isinstance(source, (str, Path)):
        read = read_source(Path(source))
        name, stem, found = read.name, read.stem, records(read)
    elif isinstance(source, Mapping):  # a `DatasetDict` too
        parts = _quoted(source)
        raise CorrigendaError(f"The records must be a list, not an object: give one of its parts ({parts}).")
    else:
        read, name, stem = None, "the list of records", "record"
        found = numbered(name, ((None, plain(record)) for record in source))
    for number, (place, record) in enumerate(found, start=1):
        try:
            reading.take(number, record, default_id=f"{stem}-{number:05d}")
        except UnknownFormError as error:
            raise CorrigendaError(f"{place}: {error}.") from None
        except FieldError as error:
            named = error.field if read is None or error.field in record else _as_spelt(error.field, read)
            raise CorrigendaError(f'{place}: the field "{named}" {error.problem}.') from None
        except RecursionError:
            raise CorrigendaError(f"{place}: {TOO_DEEP}.") from None
    edits = reading.distinct()
    if not edits:
        raise CorrigendaError(f"{name} holds no edits: every record has an empty target.")
    notices = reading.notices(name)
    return LoadedEdits((unique_subjects(edits) if unique_subject else edits)[:limit], notices)


@dataclass
class _Reading:
    """The edits of the records so far, and what there is to say of them; `numbers` are those of their records."""

    edits: list[Edit] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)
    unknown: dict[str, list[int]] = field(default_factory=dict)
    renamed: list[tuple[int, str]] = field(default_factory=list)

    def take(self, number: int, record: Mapping[str, Any], default_id: str) -> None:
        """Read the record of this number."""
        read = read_record(record, default_id)
        if not read.edits:
            self.empty.append(number)
            return
        self.edits += read.edits
        self.numbers += [number] * len(read.edits)
        for name in read.unknown:
            self.unknown.setdefault(name, []).append(number)

    def distinct(self) -> list[Edit]:
        """The edits, with a number at each id that an earlier one has."""
        own = {edit.id for edit in self.edits}
        ids = DistinctIds(own.__contains__)
        found = []
        for number, edit in zip(self.numbers, self.edits):
            if edit.id in ids:
                edit = replace(edit, id=ids.another(edit.id))
                self.renamed.append((number, edit.id))
            else:
                ids.own(edit.id)
            found.append(edit)
        return found

    def notices(self, name: str) -> list[str]:
        """A sentence on each thing that was not taken as it stands."""
        found = []
        if self.empty:
            found.append(f"{name}: {_counted(self.empty, 'record')} left out, for the target is empty.")
        if self.renamed:
            shown = ", ".join(f'record {number} is "{id}"' for number, id in self.renamed[:4])
            more = ", ..." if len(self.renamed) > 4 else ""
            found.append(
                f"{name}: {len(self.renamed)} ids are those of earlier records, and got a number: {shown}{more}."
            )
        if self.unknown:
            fields = _quoted(self.unknown, 8)
            found.append(f"{name}: these fields are kept, and say nothing to an edit: {fields}.{self._meant()}")
        return found

    def _meant(self) -> str:
        for name in self.unknown:
            like = next(iter(difflib.get_close_matches(name.lower(), _KNOWN, n=1, cutoff=0.8)), name)
            if like != name:
                return f' Is "{name}" meant to be "{like}"?'
        return ""


def _counted(numbers: list[int], noun: str) -> str:
    shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"1 {noun} ({shown}) is" if len(numbers) == 1 else f"{len(numbers)} {noun}s ({shown}) are"


def _quoted(names: Iterable[str], most: int = 6) -> str:
    names = list(names)
    return ", ".join(f'"{name}"' for name in names[:most]) + (", ..." if len(names) > most else "")


def _as_spelt(field: str, source: Source) -> str:
    """The name that a file's records give to a field, which one of them lacks; where none has it, our own."""
    if field != TARGETS[0]:
        return field
    with contextlib.suppress(CorrigendaError):  # of a later record, whose turn it is not yet
        for _, record in records(source):
            for name in TARGETS:
                if name in record:
                    return name
    return "target"
