"""What the entries of a ledger may say. Checksums find damage, not forgery: whoever makes a ledger can make any chain.

Each function raises ValueError, KeyError or TypeError; `History.take` makes a sentence of it.
"""

from __future__ import annotations

import base64
import binascii
import re
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any

from ..edits.template import Template

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", re.ASCII)
"""As `History.stamp` writes it: then the order of texts is that of times."""


def check_stamp(body: dict[str, Any]) -> None:
    """Who and when, where an entry says so."""
    if "time" in body:
        if not isinstance(body["time"], str):
            raise ValueError("its time is not text")
        _check_time(body["time"])
    for name in ("author", "note"):
        if not isinstance(body.get(name), (str, type(None))):
            raise ValueError(f"its {name} is not text")


@lru_cache(maxsize=64)  # the entries of a batch have one time
def _check_time(text: str) -> None:
    if not _TIME.fullmatch(text):
        raise ValueError("its time is not one that is written")
    datetime.fromisoformat(text)


def check_header(body: dict[str, Any]) -> None:
    """A ledger's first entry, which says what model and configuration its edits are for."""
    config, prompts, base = body["config"], body["prompts"], body["base"]
    if not all(isinstance(part, dict) for part in (config, prompts, base)) or not isinstance(body["id"], str):
        raise ValueError("its config, prompts and base must be objects")
    if not isinstance(config.get("method"), str):
        raise ValueError("its config names no method")
    if not isinstance(prompts.get("template"), (str, type(None))) or not isinstance(prompts.get("chat"), bool):
        raise ValueError("its prompts have no template or do not say whether they are a chat's")
    Template.parse(prompts["template"])
    widths = base["widths"]
    if not isinstance(widths, list) or len(widths) != 2 or not all(_is_whole(width, 1) for width in widths):
        raise ValueError("its base has no widths")
    if not _is_whole(base["layers"], 1) or not isinstance(base["tokenizer"], str):
        raise ValueError("its base has no layers or no tokenizer")
    if not isinstance(base.get("name"), (str, type(None))):
        raise ValueError("its base has a name that is not text")
    if "vocabulary" in base and not _is_whole(base["vocabulary"], 1):
        raise ValueError("its base has a vocabulary that is not a number of tokens")
    if "tensors" in body:
        check_tensors(body["tensors"])


def check_edit(seq: int, body: dict[str, Any]) -> None:
    """An edit, at entry `seq`."""
    check_texts(body, ("id", "fingerprint", "time"))
    check_texts(body["edit"], ("prompt", "target"))
    check_tensors(body["tensors"])
    numbers, written = body.get("numbers", {}), body.get("written", {})
    if not isinstance(written, dict) or not isinstance(numbers, dict):
        raise ValueError("what it says of its writing is not an object")
    if not all(_is_number(value) for value in numbers.values()):
        raise ValueError("its numbers are not numbers")
    if not all(written.get(name) is None or _is_number(written[name]) for name in ("loss", "steps")):
        raise ValueError("its loss or its steps are not a number")
    if not isinstance(written.get("held"), (bool, type(None))):
        raise ValueError("it does not say whether it holds")
    if not _is_whole(body["batch"], 1) or body["batch"] > seq:
        raise ValueError("its batch is not one of the entries before")
    check_numbers(body.get("supersedes", []))


def fingerprint_bytes(text: str) -> bytes:
    """int32 words, the lowest byte first, of a fingerprint as an entry has it."""
    try:
        found = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("its fingerprint cannot be read") from None
    if len(found) % 4:
        raise ValueError("its fingerprint is not one of whole numbers")
    return found


def check_texts(body: dict[str, Any], names: tuple[str, ...]) -> None:
    """Fields that are text."""
    for name in names:
        if not isinstance(body[name], str):
            raise ValueError(f"without text as its {name}")


def check_tensors(expected: Any) -> None:
    """What an entry says of its tensors."""
    if not isinstance(expected, dict) or not isinstance(expected["sha256"], str) or not _is_whole(expected["bytes"], 0):
        raise ValueError("its tensors have no checksum or no size")


def check_numbers(numbers: Any) -> None:
    """Numbers of entries, each once."""
    if not isinstance(numbers, list) or not all(_is_whole(number, 1) for number in numbers):
        raise ValueError("numbers of entries that are none")
    if len(set(numbers)) != len(numbers):
        raise ValueError("an entry that is named twice")


def check_missing(missing: Any) -> None:
    """What a repair found missing."""
    if not isinstance(missing, dict) or not all(_is_whole(missing[name], 0) for name in ("found", "entries")):
        raise ValueError("what is missing is not a number of entries")


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 63


def _is_number(value: Any) -> bool:
    # Every whole number is below infinity, and not every one is a float; of NaN every comparison is false.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
