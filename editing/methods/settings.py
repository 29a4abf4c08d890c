"""Settings of a method as a user writes them: `NAME=VALUE`."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable
from typing import Any

from ..errors import CorrigendaError
from .config import CONFIGS


def settings_of(method: str, written: Iterable[str]) -> dict[str, Any]:
    """The settings of `method` that these texts give, of the types that its configuration names.

    VALUE is JSON where it can be (`0.5`, `true`, `null`), else text. Raises CorrigendaError for a text without "=", and
    for a name that the method's configuration has not.
    """
    if method not in CONFIGS:
        raise CorrigendaError(f'Unknown editing method "{method}": use one of {", ".join(CONFIGS)}.')
    fields = {field.name: str(field.type) for field in dataclasses.fields(CONFIGS[method])}
    found: dict[str, Any] = {}
    for item in written:
        name, equals, value = item.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise CorrigendaError(f'--set "{item}" is not of the form NAME=VALUE, as --set gain=1.5.')
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"perhaps `{near[0]}` is meant" if near else f"it has {', '.join(fields)}"
            raise CorrigendaError(f'The method "{method}" has no setting "{name}": {hint}.')
        found[name] = _value(value.strip(), fields[name])
    return found


def _value(text: str, kinds: str) -> Any:
    named = {"True": True, "False": False, "None": None}
    if text in named:
        return named[text]
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if kinds == "str" or isinstance(value, (dict, list, str)) else value
