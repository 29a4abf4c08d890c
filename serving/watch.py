"""What a server remembers of its decisions: how often each edit answered, and which requests were decided narrowly."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any, NamedTuple

from .served_edits import Admission

NARROW = 0.1
"""A margin of less, above or below zero, is a decision that might as well have gone the other way."""
REMEMBERED = 3600.0
"""Seconds for which a narrow decision is told."""
_MOST = 500
_LONGEST = 300


class _Narrow(NamedTuple):
    time: float
    question: str
    admission: Admission


class Watch:
    """Counts of the edits that are served, and the last hour's narrow decisions, 500 of them at most."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._answered: Counter[str] = Counter()
        self._narrow: deque[_Narrow] = deque(maxlen=_MOST)

    def saw(self, question: str, admission: Admission) -> None:
        """Take note of what was decided for a request."""
        with self._lock:
            if admission.key is not None:
                self._answered[admission.key] += 1
            if admission.nearest is not None and abs(admission.margin) < NARROW:
                self._narrow.append(_Narrow(self._clock(), question[:_LONGEST], admission))

    def unsaid(self, admission: Admission) -> None:
        """Take back that an edit answered a request: its answer was not said."""
        with self._lock:
            if self._answered[admission.key] > 0:
                self._answered[admission.key] -= 1

    def answered(self, key: str) -> int:
        """How many requests an edit has answered since it is served."""
        return self._answered[key]

    def keep(self, keys: Collection[str]) -> None:
        """Forget the counts of all other edits."""
        with self._lock:
            self._answered = Counter({key: count for key, count in self._answered.items() if key in keys})

    def narrow(self, tenant: str | None, everything: bool) -> list[dict[str, Any]]:
        """Narrow decisions of a tenant's requests, or of all, the last one first."""
        since = self._clock() - REMEMBERED
        with self._lock:
            found = [one for one in reversed(self._narrow) if one.time >= since]
        return [_to_dict(one) for one in found if everything or one.admission.tenant == tenant]


def _to_dict(one: _Narrow) -> dict[str, Any]:
    admission = one.admission
    return {
        "time": datetime.fromtimestamp(one.time, UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "question": one.question,
        "edit": None if admission.edit is None else admission.edit.id,
        "nearest": admission.nearest.id,
        "score": admission.score,
        "margin": admission.margin,
        "reason": admission.reason,
        "tenant": admission.tenant,
    }
