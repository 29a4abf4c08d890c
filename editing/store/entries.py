"""Entries of a ledger as bytes: JSON that any reader takes, and the chain of checksums that covers them."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, NoReturn

from ..errors import CorrigendaError
from .files import reason_of

LARGEST_BODY = 1 << 24
"""What an entry may say, in bytes of JSON."""
MOST_VALUES = 1 << 20
"""And how many values it may hold: parsed, each takes some hundred bytes, whatever it takes in JSON."""


def encoded(body: dict[str, Any]) -> bytes:
    """An entry's body as it is written."""
    try:
        written = json.dumps(body, ensure_ascii=False, allow_nan=False, sort_keys=True).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise CorrigendaError(f"What JSON cannot hold cannot be recorded: {reason_of(error)}.") from None
    if len(written) > LARGEST_BODY or _values(written) > MOST_VALUES:
        raise CorrigendaError("An entry is larger than any ledger takes; nothing was added.")
    return written


def parsed(body: bytes) -> dict[str, Any] | None:
    """The JSON object that a body holds; None where it holds something else, or what `encoded` never writes."""
    if _values(body) > MOST_VALUES:
        return None
    try:
        found = _DECODER.decode(body.decode())
        if b"\\u" in body and b"\\ud" in body.lower():  # half of a surrogate pair can be printed and exported nowhere
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def next_chain(chain: bytes, seq: int, kind: str, body: bytes) -> bytes:
    """The checksum of an entry and all before it, whose checksum is `chain`."""
    named = kind.encode(errors="surrogatepass")
    head = seq.to_bytes(8, "little", signed=True) + len(named).to_bytes(8, "little")
    return hashlib.sha256(chain + head + named + body).digest()


def _values(body: bytes) -> int:
    """No less than the values that JSON holds."""
    return 1 + body.count(b",") + body.count(b"[") + body.count(b"{")


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is beyond what a float holds")
    return value


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)
"""Made once: `json.loads` would make one for every entry."""
