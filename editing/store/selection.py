"""Which entries are meant by an author, and by times as a user writes them."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from ..errors import CorrigendaError


def selection(author: str | None, since: str | None, until: str | None) -> Callable[[dict[str, Any]], bool]:
    """Whether an entry is by an author, and of a time (`History.select`)."""
    since, until = moment(since, "since"), moment(until, "until")

    def wanted(body: dict[str, Any]) -> bool:
        time = body["time"]
        return (
            (author is None or body.get("author") == author)
            and (since is None or time >= since)
            and (until is None or time[: len(until)] <= until)
        )

    return wanted


_DAY = re.compile(r"\d{4}(?:-\d\d(?:-\d\d)?)?", re.ASCII)
_TIME = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?)(Z|[+-]\d\d:\d\d)?", re.ASCII)


def moment(text: str | None, name: str) -> str | None:
    """A time as a user writes it, as the start of one that ledgers have: in UTC, no more exact than it was given."""
    if text is None:
        return None
    try:
        if _DAY.fullmatch(text):
            datetime.fromisoformat(text + "0001-01-01"[len(text) :])
            return text
        given, offset = _TIME.fullmatch(text).groups()
        whole = datetime.fromisoformat(given + (offset or "Z")).astimezone(UTC)
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise CorrigendaError(
            f'"{text}" is not a time to select edits by (`{name}`): write 2026-11-22, or 2026-11-22T14:30 in UTC or '
            "with an offset (+02:00)."
        ) from None
    return whole.isoformat(timespec="microseconds")[: len(given)]
