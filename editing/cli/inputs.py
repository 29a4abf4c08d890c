"""What a user gives on the command line, checked before any model is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..edits.edit import required_text
from ..edits.records import RECORDS, STANDARD_INPUT, read_source, records, text_of
from ..edits.template import Template
from ..errors import CorrigendaError, FieldError
from ..methods.config import EditingConfig
from ..store.files import refuse_non_empty
from ..store.store import CONFLICT_POLICIES, EditStore


def merged_settings(options: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that options of their own (None where not given) and `--set` give; both must say the same of one."""
    for name, value in others.items():
        if options.get(name) not in (None, value):
            option = name.replace("_", "-")
            raise CorrigendaError(f"--{option} says {options[name]!r} and --set {name}={value}: give one of them.")
    return {**{name: value for name, value in options.items() if value is not None}, **others}


def parse_threshold(text: str | None) -> float | str | None:
    """What `--threshold` says: a number, or "auto"."""
    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise CorrigendaError(f'The threshold must be "auto" or a number from 0 to 1, not "{text}".') from None


def check_out(folder: Path) -> None:
    """Raise where edits could not be saved later: a folder that is not empty, or a place that takes no folder."""
    refuse_non_empty(folder)
    place = folder.absolute().parent
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise CorrigendaError(f"The folder {folder} cannot be made: {place} is a file.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise CorrigendaError(f"The folder {folder} cannot be made: {place} is read-only.")


def check_policy(on_conflict: str, edits: Path) -> None:
    """Raise unless `--on-conflict` names a policy that can be followed for these edits."""
    policies = (*CONFLICT_POLICIES, "ask")
    if on_conflict not in policies:
        raise CorrigendaError(f'--on-conflict must be one of {", ".join(policies)}, not "{on_conflict}".')
    if on_conflict == "ask" and edits == STANDARD_INPUT:
        raise CorrigendaError(
            "With --on-conflict ask the answers come from standard input, which holds the edits here: name a file of "
            "edits, or another policy."
        )


def check_same(folder: Path, method: str, settings: Mapping[str, Any], template: str | None, chat: bool) -> None:
    """Raise where a stream would go on with other settings than it began with; those not given count as the same."""
    store = EditStore.open(folder)
    try:
        stored, prompts = EditingConfig.from_dict(store.header["config"]).to_dict(), store.header["prompts"]
    finally:
        store.close()
    asked = {"method": method, **settings}
    if template is not None:
        asked["template"], stored = Template.parse(template).text, {**stored, "template": prompts.get("template")}
    if chat:
        asked["chat_template"], stored = True, {**stored, "chat_template": prompts.get("chat")}
    for name, value in asked.items():
        if stored.get(name) != value:
            raise CorrigendaError(
                f"The stream in {folder} was begun with {name.replace('_', '-')} {stored.get(name)!r}, not {value!r}: "
                "resume it with the same settings."
            )


def read_requests(path: Path) -> list[str]:
    """As `read_prompts`; of a record with `messages`, what the last user turn says."""
    from ..model.route import request_of

    return read_prompts(path, request_of)


def read_prompts(path: Path, of_record: Callable[[Mapping[str, Any]], str] | None = None) -> list[str]:
    """A prompt a line; or the `prompt` of each record, in a file that is or opens as one of records."""
    if path != STANDARD_INPUT and path.is_dir():
        raise CorrigendaError(f"{path} is a folder, not a file of prompts.")
    source = read_source(path)
    if source.suffix not in RECORDS:
        lines = [line.rstrip("\r") for line in text_of(source).split("\n") if line.strip()]
        if not lines:
            raise CorrigendaError(f"{source.name} holds no prompts.")
        if not _is_object(lines[0]):
            return lines
    elif not source.content.strip():
        raise CorrigendaError(f"{source.name} holds no prompts.")
    return [_prompt_of(record, place, of_record) for place, record in records(source)]


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False
    except (ValueError, RecursionError):  # JSON beyond what Python takes: `records` says so
        return line.lstrip().startswith("{")


def _prompt_of(
    record: Mapping[str, Any], place: str, of_record: Callable[[Mapping[str, Any]], str] | None = None
) -> str:
    try:
        return required_text("prompt", record.get("prompt")) if of_record is None else of_record(record)
    except FieldError as error:
        raise CorrigendaError(f'{place}: the field "{error.field}" {error.problem}.') from None
