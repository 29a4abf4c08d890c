"""A request of continuous batching, from its arrival to its end, and what its manager asks of the served model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from ..editing.edits.answer_start import AnswerPlan
from ..editing.edits.spelling import Vocabulary
from ..editing.memories.row_form import Rows
from ..editing.model.layer import Site
from ..editing.routers.context import RoutingContext
from .errors import ServingError
from .served_edits import Admission

if TYPE_CHECKING:
    from .outcome import Expected


class ServedRequest:
    """A request from its arrival to its end: what was decided for it, where its edit's rows are (-1: no edit answers),
    and how long its prompt is. Where edits make room for others it has the `rows` themselves.

    It travels on the stack's own state of the request, so what becomes of that becomes of the decision: a fork has its
    parent's, and a request that the stack drops without a word is forgotten here too.
    """

    __slots__ = ("__weakref__", "admission", "batch", "ended", "expected", "place", "prompt", "rows")

    def __init__(self, admission: Admission, place: int, prompt: int, rows: Rows | None = None) -> None:
        self.admission = admission
        self.expected: Expected | None = None
        self.batch: CallRequests | None = None
        self.place = place
        self.prompt = prompt
        self.rows = rows
        self.ended = False

    def __deepcopy__(self, memo: dict[int, Any]) -> ServedRequest:
        return self

    @property
    def edited(self) -> bool:
        return self.admission.edit is not None

    @property
    def plan(self) -> AnswerPlan | None:
        return self.admission.plan if self.edited else None


class RequestHost(Protocol):
    """What a manager's requests ask of the model that serves them (`RequestsInFlight`)."""

    site: Site
    idle: RoutingContext
    passing: threading.RLock  # of one pass at a time: what the layer reads is one manager's

    def admit(self, request: str, tokens: Sequence[int], tenant: str | None) -> ServedRequest:
        """Decide a request's edit and keep that edit's rows while the request is in flight."""

    def place_of(self, served: ServedRequest, in_pass: Callable[[], set[str | None]]) -> int:
        """Where the rows of a request's edit are, before its first pass; `in_pass`: keys of edits that must stay."""

    def check_alone(self) -> None:
        """Raise where another manager runs that may not run beside this one."""

    def vocabulary(self) -> Vocabulary:
        """The texts of the tokenizer's tokens."""

    def drop_unread_rows(self) -> None:
        """Drop rows that nobody reads any more."""

    def outcome(self, served: ServedRequest, tokens: Sequence[int]) -> Admission:
        """What came of a request, by one of its answers."""

    def lost(self, request: str, served: ServedRequest) -> None:
        """A request is found to have been answered without its edit's rows; it fails."""


class CallRequests:
    """Whose the prompts of one `generate_batch` call are, and what was decided for them, by request."""

    def __init__(self, tenants: dict[int, str | None]) -> None:
        self.tenants = tenants  # by the identity of the prompt's list, which the manager hands on
        self.admissions: dict[str, Admission] = {}
        self.refused: ServingError | None = None  # transformers logs what is raised within, and gives no answers


call_requests: ContextVar[CallRequests | None] = ContextVar("corrigenda_arrivals", default=None)
asking_tenant: ContextVar[str | None] = ContextVar("corrigenda_tenant", default=None)
