"""Requests in flight on a served model: what was decided for each, and its edit's rows, which stay while it is."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Container, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

from ..editing.backbone.modes import own_modes
from ..editing.edits.spelling import Vocabulary
from ..editing.errors import CorrigendaError
from ..editing.memories.row_form import Rows
from ..editing.model.layer import Site
from ..editing.routers.context import RoutingContext
from ..editing.shown import shown
from .catalogue import Catalogue
from .log import logger_of
from .memory import ServedMemory
from .metrics import Metrics
from .outcome import Outcomes
from .requests import ServedRequest
from .served_edits import Admission, Change

if TYPE_CHECKING:
    from .continuous import BatchedRequests

logger = logger_of("corrigenda")

_Done = TypeVar("_Done")


class RequestsInFlight:
    """What all managers of one model ask for their requests (`RequestHost`), and how the memory changes beneath them.

    A change's rows are read while passes run, and written between two; rows of edits that are gone are dropped when the
    last request that reads them has ended.

    site      where the edited layer finds whose tokens a pass holds; `idle` is there between passes
    managers  of continuous batching on the model
    """

    def __init__(
        self, catalogue: Catalogue, memory: ServedMemory, metrics: Metrics, site: Site, idle: RoutingContext
    ) -> None:
        self.site = site
        self.idle = idle
        self.passing = threading.RLock()  # of one pass at a time, whichever manager's
        self.managers: weakref.WeakSet[BatchedRequests] = weakref.WeakSet()
        self._catalogue, self._memory, self._metrics = catalogue, memory, metrics
        self._outcomes = Outcomes(catalogue, metrics, self.vocabulary())
        self._lock = threading.RLock()  # of what is admitted and of what the memory holds
        self._coming: frozenset[str] = frozenset()  # edits of the change that is being read
        self._requests: weakref.WeakSet[ServedRequest] = weakref.WeakSet()
        self._unread_rows = False

    def admit(self, request: str, tokens: Sequence[int], tenant: str | None) -> ServedRequest:
        """Decide a request's edit and keep that edit's rows while the request is in flight."""
        with self._lock:
            admission = self._admitted(request, self._catalogue.admit(tokens, tenant))
            rows = None if admission.key is None else self._memory.rows_of(admission.key)
            served = ServedRequest(admission, self._memory.place(admission.key), len(tokens), rows)
            self._requests.add(served)
        return served

    def _admitted(self, request: str, admission: Admission) -> Admission:
        """What is decided for a request, by what rows are here.

        Rows are here for every edit that may answer. Should any be missing all the same, the base model answers, and
        nothing says that an edit did.
        """
        if admission.key is not None and not self._memory.knows(admission.key):
            logger.error("request %s: the rows of edit %s are missing, the base model answers", request, admission.key)
            admission = admission._replace(edit=None, lost=True)
        self._metrics.admitted(admission)
        _log(request, admission)
        return admission

    def placing(self) -> Callable[[str, Admission], tuple[Admission, int]]:
        """For the rows of one call of `generate`: takes what the catalogue decided for one, gives what is decided by
        what rows are here, and where those of its edit are: -1 for none. All that it has placed stay where they are.
        """
        of_call: set[str] = set()

        def placed(request: str, admission: Admission) -> tuple[Admission, int]:
            admission = self._admitted(request, admission)
            key = admission.key
            rows = None if key is None else self._memory.rows_of(key)
            if key is None or rows is None:
                return admission, self._memory.place(key)
            of_call.add(key)
            kept = of_call.union(*(requests.reading() for requests in list(self.managers)))
            return admission, self._bring(key, rows, kept)

        return placed

    def place_of(self, served: ServedRequest, in_pass: Callable[[], set[str | None]]) -> int:
        """Where the rows of a request's edit are, before its first pass."""
        key = served.admission.key
        if key is None or served.rows is None:  # they stay where they are
            return served.place
        with self._lock:
            return self._bring(key, served.rows, in_pass())

    def _bring(self, key: str, rows: Rows, kept: Container[str | None]) -> int:
        place = self._memory.bring(key, rows, kept)
        self._metrics.paged(self._memory.counts)
        return place

    def check_alone(self) -> None:
        """Raise where another batch runs, and edits make room for others: each knows its own requests alone."""
        if self._catalogue.settings.resident is not None and sum(one.running for one in list(self.managers)) > 1:
            raise CorrigendaError('With "resident" one continuous batch runs at a time: stop the other one first.')

    def outcome(self, served: ServedRequest, tokens: Sequence[int]) -> Admission:
        """What came of a request, by one of its answers."""
        return self._outcomes.of(served.admission, tokens)

    def vocabulary(self) -> Vocabulary:
        return self._catalogue.prompts.vocabulary

    def lost(self, request: str, served: ServedRequest) -> None:
        """A request's edit was left out at the layer; its answer is withheld."""
        logger.error(
            "request %s fails: the values of edit %s are no numbers, or too large", request, served.admission.key
        )
        self._metrics.lost(1)

    def drop_unread_rows(self) -> None:
        """Drop rows that nobody reads any more. Between two passes."""
        if not self._unread_rows:
            return
        with self._lock:
            known = self._catalogue.keys()
            in_flight = {served.admission.key for served in self._requests if not served.ended}
            self._memory.keep(known | in_flight | self._coming)
            self._unread_rows = bool(in_flight - known - {None})

    def rows_may_go(self) -> None:
        """Some edits may be served no longer: `drop_unread_rows` is to look."""
        self._unread_rows = True

    @own_modes()
    def hold(self, change: Change, then: Callable[[], _Done]) -> _Done:
        """Read a change's rows while passes run; write them, and do what comes `then`, between two."""
        with self._lock:  # rows that are still here for a request in flight are not read: they must stay
            self._coming = frozenset().union(*change.needed.values())
        try:
            rows = [self._memory.read(folder, needed) for folder, needed in change.needed.items()]
            with self.between_passes():
                try:
                    for records in rows:
                        self._memory.put(records)
                    return then()
                finally:
                    self._coming = frozenset()
                    self._unread_rows = True
                    self.drop_unread_rows()
        finally:
            self._coming = frozenset()
            self._unread_rows = True

    @contextlib.contextmanager
    def between_passes(self) -> Iterator[None]:
        """Within: running batches wait, and nobody is admitted."""
        with contextlib.ExitStack() as stack:
            for requests in list(self.managers):
                if requests.running:
                    with contextlib.suppress(RuntimeError):  # it stopped just now
                        stack.enter_context(requests.manager.pause())
            stack.enter_context(self._lock)
            yield
            if self.site.context.device.type == "cuda":
                torch.cuda.synchronize(self.site.context.device)


def _log(request: str, admission: Admission) -> None:
    if admission.edit is not None:
        logger.info(
            "request %s of %s: edit %s (score %.3f, margin %+.3f, version %d)",
            shown(request),
            admission.tenant or "no tenant",
            shown(admission.edit.id),
            admission.score,
            admission.margin,
            admission.version,
        )
