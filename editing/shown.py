"""Text from elsewhere, a folder's, a file's or a request's, as a terminal and a log may show it."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

from .errors import FieldError

LONGEST_NAME = 256
"""Characters of an id, a tenant's or an author's name: one fits into a header, a line of a log and a command."""

_JOINERS = "\u200c\u200d"
"""Invisible, and part of words of several languages."""


def shown(text: str) -> str:
    r"""`text` on one line; what is no visible character is escaped as in Python: `\n`, `\x1b`, `\u202e`.

    A terminal obeys such characters: they write elsewhere on the screen, turn the text round, or begin a line of a log.
    """
    return text if text.isprintable() else "".join(c if _visible(c) else _escaped(c) for c in text)


def one_line(text: str) -> str:
    """The same of a text that is read, not asked for again: white space of any kind is a space."""
    return shown(" ".join(text.split()))


def shortened(text: str, width: int) -> str:
    """The first `width` characters of `text`, on one line."""
    line = one_line(text)
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"


def shown_json(data: Any, indent: int | None = None) -> str:
    """`data` as JSON, with the same characters escaped as JSON does; line feeds are those of `indent` alone."""
    text = json.dumps(data, ensure_ascii=False, indent=indent)
    return text if text.isprintable() else re.sub(r"[^\n -~]", _in_json, text)


def name(field: str, value: str) -> str:
    """`value` as it is; a FieldError unless it can be shown, typed and sent as it is, and is not too long."""
    if len(value) > LONGEST_NAME:
        raise FieldError(field, f"has {len(value)} characters, more than {LONGEST_NAME}")
    hidden = next((c for c in value if not _visible(c)), None)
    if hidden is not None:
        raise FieldError(field, f"holds the character {_escaped(hidden)}, which cannot be shown")
    return value


def _visible(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs" or character in _JOINERS


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _in_json(found: re.Match[str]) -> str:
    return found[0] if _visible(found[0]) else json.dumps(found[0])[1:-1]
