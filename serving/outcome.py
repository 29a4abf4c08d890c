"""What came of a request that an edit was to answer: whether what was written says the edit's answer."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from ..editing.edits.spelling import Vocabulary
from ..editing.routers.progress import AnswerProgress
from .catalogue import Catalogue
from .edit_header import HttpRequest
from .metrics import Metrics
from .served_edits import Admission


class Outcomes:
    """Looks at finished answers, one at a time, whatever thread asks.

    A grammar, a banned token or sampling may have let no answer of the edit's be said: then the base model's was, and
    no edit is named for it.
    """

    def __init__(self, catalogue: Catalogue, metrics: Metrics, vocabulary: Vocabulary) -> None:
        self._catalogue, self._metrics = catalogue, metrics
        self._progress = AnswerProgress(vocabulary.kinds, 1, torch.device("cpu"))
        self._lock = threading.Lock()

    def of(self, admission: Admission, tokens: Sequence[int]) -> Admission:
        """A request's admission, by its answer's tokens: one that names no edit where they do not say its answer."""
        if admission.edit is None or admission.plan is None:
            return admission
        with self._lock:
            if self._progress.says(admission.plan, tokens):
                return admission
        self._catalogue.watch.unsaid(admission)
        self._metrics.unsaid(admission)
        return admission.without_edit()


class Expected:
    """A request on its way: what was decided for it, and the HTTP request that is told what came of it.

    Of several answers to one prompt, its edit is named where any says what the edit has.
    """

    __slots__ = ("__weakref__", "_http", "_place", "admission", "said")

    def __init__(self, admission: Admission, http: HttpRequest | None) -> None:
        self.admission = admission
        self._http = http
        self.said = False
        self._place = None if http is None else http.decided(*admission.told)

    def finished(self, outcome: Admission) -> None:
        """Take note of one of its answers."""
        self.said = self.said or outcome.edit is not None
        if self._http is not None and self.admission.edit is not None:
            self._http.edits[self._place] = self.admission.edit.id if self.said else None
