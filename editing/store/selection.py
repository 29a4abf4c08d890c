"""Which edits a user means: by their ids, by an author, by times as a user writes them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from ..errors import CorrigendaError


class Stamped(Protocol):
    """What was written by somebody, at a time."""

    author: str | None
    time: str


@dataclass(frozen=True)
class Selection:
    """Edits by their ids, or `by` an author, or written `since` or up to and with `until` a time (ISO 8601)."""

    ids: tuple[str, ...] = ()
    by: str | None = None
    since: str | None = None
    until: str | None = None

    def __post_init__(self) -> None:
        for name in ("since", "until"):
            object.__setattr__(self, name, moment(getattr(self, name), name))

    @property
    def by_entry(self) -> bool:
        """Whether edits are chosen by who wrote them, or when."""
        return (self.by, self.since, self.until) != (None, None, None)

    def __bool__(self) -> bool:
        return bool(self.ids) or self.by_entry

    def takes(self, entry: Stamped) -> bool:
        """Whether something is by that author, and of that time."""
        return (
            (self.by is None or entry.author == self.by)
            and (self.since is None or entry.time >= self.since)
            and (self.until is None or entry.time[: len(self.until)] <= self.until)
        )


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
