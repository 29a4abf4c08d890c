"""What is compared: a model, a file of edits, the numbers of edits to score at, and the runs, from options or YAML."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CorrigendaError
from ..methods.registry import config_for
from ..methods.settings import settings_of

_FIELDS = {"model", "edits", "at", "template", "runs", "protected", "scored"}
_OF_RUN = {"name", "method", "set", "at"}
_PROTECTED = ("told", "asked")


@dataclass(frozen=True)
class Run:
    """One method with its settings; `name` is its result file's. It may be scored `at` numbers of edits of its own."""

    name: str
    method: str
    settings: Mapping[str, Any]
    at: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.at is not None:
            _check_numbers(self.at)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}", self.name):
            raise CorrigendaError(
                f'The run "{self.name}" needs a name that a file can have: letters, digits, dots and hyphens.'
            )
        # What is wrong with it is said before anything runs.
        config_for(
            self.method, **settings_of(self.method, [f"{name}={value}" for name, value in self.settings.items()])
        )


@dataclass(frozen=True)
class Plan:
    """All that a comparison consists of; `edits` None: the project's own made-up facts.

    protected: whether methods are "told" an edit's protected questions, or these are only "asked" of what they made.
    scored: of how many edits at most a score is, which lie evenly in the stream; None: of all.
    """

    model: str
    edits: Path | None
    at: Sequence[int]
    runs: Sequence[Run]
    template: str | None = None
    protected: str = "told"
    scored: int | None = None

    def __post_init__(self) -> None:
        _check_numbers(self.at)
        if self.protected not in _PROTECTED:
            raise CorrigendaError(f'"protected" must be one of {", ".join(_PROTECTED)}, not "{self.protected}".')
        if self.scored is not None and (type(self.scored) is not int or self.scored < 1):
            raise CorrigendaError(f'"scored" must be a whole number of edits, at least 1, not {self.scored!r}.')
        names = [run.name for run in self.runs]
        if not names:
            raise CorrigendaError("There is nothing to run: name a --method, or `runs` in the plan.")
        for name in names:
            if names.count(name) > 1:
                raise CorrigendaError(f'Two runs are called "{name}": give each a `name` of its own.')

    @property
    def most(self) -> int:
        """The most edits that a run writes."""
        return max(self.at_of(run)[-1] for run in self.runs)

    def at_of(self, run: Run) -> Sequence[int]:
        """The numbers of edits that a run is scored at."""
        return run.at or self.at


def _check_numbers(at: Sequence[int]) -> None:
    if not at or min(at) < 1 or list(at) != sorted(set(at)):
        raise CorrigendaError(
            f"The numbers of edits to score at must be whole, ascending and at least 1, not {list(at)}."
        )


def read_plan(path: Path, **given: Any) -> Plan:
    """The plan of a YAML file; what is `given` and not None has the word over what the file says."""
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CorrigendaError(f"There is no file {path}.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CorrigendaError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}.") from None
    _check_fields(found, _FIELDS, str(path))
    fields = {**found, **{name: value for name, value in given.items() if value is not None}}
    for name, kind in (("model", str), ("at", list), ("runs", list)):
        if not isinstance(fields.get(name), kind):
            raise CorrigendaError(f'{path}: the field "{name}" is missing, or not what it should be.')
    _check_whole(fields["at"], str(path))
    edits = fields.get("edits")
    if edits is not None and not isinstance(edits, (str, Path)):
        raise CorrigendaError(f'{path}: the field "edits" must be the path of a file.')
    beside = None if edits is None else Path(edits) if given.get("edits") else path.parent / edits
    runs = [_run(each, f"{path}, run {number}") for number, each in enumerate(fields["runs"], start=1)]
    how = {name: fields[name] for name in ("template", "protected", "scored") if fields.get(name) is not None}
    return Plan(fields["model"], beside, fields["at"], runs, **how)


def _run(found: Any, where: str) -> Run:
    _check_fields(found, _OF_RUN, where)
    method, settings = found.get("method"), found.get("set") or {}
    if not isinstance(method, str):
        raise CorrigendaError(f'{where}: the field "method" must name one.')
    if not isinstance(settings, dict):
        raise CorrigendaError(f'{where}: the field "set" must hold settings by name.')
    if found.get("at") is not None:
        _check_whole(found["at"], where)
    try:
        return Run(str(found.get("name", method)), method, settings, found.get("at"))
    except CorrigendaError as error:
        raise CorrigendaError(f"{where}: {error}") from None


def _check_whole(numbers: Any, where: str) -> None:
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise CorrigendaError(f'{where}: the field "at" must be a list of whole numbers.')


def _check_fields(found: Any, known: set[str], where: str) -> None:
    if not isinstance(found, dict):
        raise CorrigendaError(f"{where} must hold fields: {', '.join(sorted(known))}.")
    for name in found:
        if name not in known:
            raise CorrigendaError(f'{where} has an unknown field "{name}": use {", ".join(sorted(known))}.')
