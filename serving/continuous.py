"""Continuous batching in transformers: where a manager takes requests in, makes passes, and shares blocks."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

import numpy as np
import torch

from ..editing.errors import CorrigendaError
from ..editing.model.layer import Site
from ..editing.routers.context import RoutingContext
from .catalogue import Admission
from .endpoints import current_request
from .errors import ServingError
from .recovery import fail_pass, fail_stopped, withheld
from .slots import Slots

_FLIGHT = "_corrigenda"


class Flight:
    """A request from its arrival to its end: what was decided for it, where its edit's rows are (-1: no edit answers),
    and how long its prompt is.

    It travels on the stack's own state of the request, so what becomes of that becomes of the decision: a fork has its
    parent's, and a request that the stack drops without a word is forgotten here too.
    """

    __slots__ = ("__weakref__", "admission", "ended", "place", "prompt")

    def __init__(self, admission: Admission, place: int, prompt: int) -> None:
        self.admission = admission
        self.place = place
        self.prompt = prompt
        self.ended = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Flight:
        return self

    @property
    def edited(self) -> bool:
        return self.admission.edit is not None


class Desk(Protocol):
    """What a manager's requests ask of the model that serves them."""

    site: Site
    idle: RoutingContext
    passing: threading.RLock  # of one pass at a time: what the layer reads is one manager's

    def admit(self, request: str, tokens: Sequence[int], tenant: str | None) -> Flight:
        """Decide a request's edit and keep that edit's rows while the request is in flight."""

    def tidy(self) -> None:
        """Drop rows that nobody reads any more."""

    def lost(self, request: str, flight: Flight) -> None:
        """A request is found to have been answered without its edit's rows; it fails."""


class Arrivals:
    """Whose the prompts of one `generate_batch` call are, and what was decided for them, by request."""

    def __init__(self, tenants: dict[int, str | None]) -> None:
        self.tenants = tenants  # by the identity of the prompt's list, which the manager hands on
        self.admissions: dict[str, Admission] = {}


arrivals: ContextVar[Arrivals | None] = ContextVar("corrigenda_arrivals", default=None)
_tenant: ContextVar[str | None] = ContextVar("corrigenda_tenant", default=None)


class BatchedRequests:
    """The seams of one manager: arrival, the pass about to be made, and which blocks requests share.

    Keys and values from an edited request's last prompt token on are made under its edit. A block that holds any of
    them is never offered to other requests, and such a request takes none that reach so far: whoever reads the same
    tokens in a prompt later, the next turn of a conversation above all, reads them as the base model does, as in a
    fresh pass. All other blocks are the base model's and are shared as ever.
    """

    def __init__(self, manager: Any, desk: Desk) -> None:
        if manager.distributed_helper.tp_size > 1:
            raise CorrigendaError("Edits cannot be served from a model in several shards: load it on one device.")
        self.manager = manager
        self.desk = desk
        self.context: RoutingContext | None = None
        self._slots: Slots | None = None
        self._scheduler: Any = None
        self._stream: Any = None
        self._taken: list[tuple[Any, str]] = []  # of the manager
        self._wired: list[tuple[Any, str]] = []  # of its processor, which a stop ends
        self._flights: dict[str, Flight] = {}  # of the generation's thread
        self._queued: weakref.WeakValueDictionary[str, Flight] = weakref.WeakValueDictionary()
        self._in_pass: list[Any] = []  # states of requests that the pass in hand still owes a result
        self._stopped: set[str] = set()  # requests of the pass whose edit the layer left out
        self._arriving = threading.Lock()
        self._around(self._taken, manager, "add_request", self._add_request)
        self._around(self._taken, manager.input_queue, "put", self._put)
        self._around(self._taken, manager, "_create_batch_processor", self._create)
        self._around(self._taken, manager, "_generation_loop_body", self._loop)
        self._around(self._taken, manager, "stop", self._stop)
        if manager.batch_processor is not None:
            self._wire(manager.batch_processor)

    def _around(self, taken: list[tuple[Any, str]], owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            return wrapper(original, *args, **kwargs)

        setattr(owner, name, call)
        taken.append((owner, name))

    def remove(self) -> None:
        """Take the seams off."""
        self._unwire()
        _take_off(self._taken)

    @property
    def running(self) -> bool:
        return self.manager.is_running()

    # Arrival, in the thread of whoever asks

    def _add_request(self, original: Any, input_ids: list[int], *args: Any, **kwargs: Any) -> str | None:
        """`add_request`, which also takes a `tenant`."""
        batch, request = arrivals.get(), current_request()
        tenant = None if request is None else request.tenant
        if batch is not None:
            tenant = batch.tenants.get(id(input_ids))
        token = _tenant.set(kwargs.pop("tenant", tenant))
        try:
            return original(input_ids, *args, **kwargs)
        finally:
            _tenant.reset(token)

    def _put(self, original: Any, state: Any, *args: Any, **kwargs: Any) -> None:
        """The decision belongs to a request's arrival: what changes later is for those that come later."""
        name, scheduler = state.request_id, self._scheduler
        with self._arriving:
            live = () if scheduler is None else (scheduler.active_requests, scheduler.waiting_requests)
            if name in self._queued or any(name in requests for requests in live):
                raise ServingError(f'A request with the id "{name}" is in flight: give another id.', 409)
            flight = self.desk.admit(name, state.initial_tokens, _tenant.get())
            setattr(state, _FLIGHT, flight)
            self._queued[name] = flight
        batch, request = arrivals.get(), current_request()
        if batch is not None:
            batch.admissions[name] = flight.admission
        if request is not None:
            request.decided(flight.admission.edit and flight.admission.edit.id, flight.admission.version)
        original(state, *args, **kwargs)

    # Passes, in the generation's thread

    def _create(self, original: Any) -> Any:
        processor = original()
        self._wire(processor)
        return processor

    def _loop(self, original: Any, batch_processor: Any, *args: Any, **kwargs: Any) -> bool:
        self._in_pass = []
        self._stopped = set()
        try:
            goes_on = original(batch_processor, *args, **kwargs)
            fail_stopped(batch_processor, [state for state in self._in_pass if state.request_id in self._stopped])
            return goes_on
        except Exception as error:
            if not fail_pass(batch_processor, self._in_pass, error):
                raise
            return True

    def _stop(self, original: Any, *args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        if not self.running:
            self._unwire()

    def _unwire(self) -> None:
        """Let go of a processor, whose cache is most of a GPU's memory."""
        _take_off(self._wired)
        self._scheduler = self._stream = None
        self._flights.clear()

    def _wire(self, processor: Any) -> None:
        if processor.scheduler is self._scheduler:
            return
        self._unwire()
        if processor.use_async_batching:
            raise CorrigendaError(
                "With use_async_batching a pass is described while another reads the description: set it to False."
            )
        device, requests = processor.model_device, processor.scheduler.max_requests_per_batch
        tokens = max(processor.cache.max_batch_tokens, requests)
        self.context = RoutingContext(torch.device(device), tokens, requests)
        self._slots = Slots(self.context, requests, tokens)
        self._stream = processor.inputs_and_outputs.compute_stream
        self._scheduler = processor.scheduler
        self._around(self._wired, processor.scheduler, "add_waiting_request", self._wait)
        self._around(self._wired, processor.scheduler, "schedule_batch", self._schedule)
        self._around(self._wired, processor.inputs_and_outputs, "prepare_batch_tensors", self._prepare)
        self._around(self._wired, processor.model_runner, "compute_batch", self._compute)
        self._around(self._wired, processor.output_router, "deliver_batch", self._deliver)
        self._around(self._wired, processor.cache, "search_prefix_match", self._search)
        for allocator in processor.cache.cache_allocators.values():
            self._around(self._wired, allocator, "mark_complete_blocks", self._mark)

    def _wait(self, original: Any, state: Any) -> None:
        """A new request, one that lost its cache and starts anew, or a fork for which there was no room."""
        setattr(state, _FLIGHT, self._flight(state))
        original(state)
        self._queued.pop(state.request_id, None)  # not before the scheduler has it: a name is taken in one of the two

    def _flight(self, state: Any) -> Flight:
        name = state.request_id
        flight = getattr(state, _FLIGHT, None) or self._flights.get(name)
        if flight is None:
            flight = self._flights.get(name.rpartition("__child#")[0])
        if flight is None:  # it came before the edits did
            length = state._true_initial_tokens or len(state.initial_tokens)
            flight = self.desk.admit(name, state.initial_tokens[:length], None)
        self._flights[name] = flight
        return flight

    def _schedule(self, original: Any, *args: Any) -> Any:
        found = original(*args)
        self._in_pass = [future.state for future in found[0] or ()]
        return found

    def _prepare(self, original: Any, requests_in_batch: Sequence[Any], *args: Any, **kwargs: Any) -> None:
        past = np.array([future.state.position_offset for future in requests_in_batch])
        lengths = np.array([future.query_length for future in requests_in_batch])
        active = self._scheduler.active_requests
        if all(future.state.request_id in active for future in requests_in_batch):
            self._describe([future.state for future in requests_in_batch], past, lengths)
        else:  # a warm-up, whose requests no scheduler knows
            count = int(lengths.sum())
            nobody = torch.zeros(count, dtype=torch.int32, device="cpu")
            self.context.describe(nobody, nobody.bool(), nobody.bool())
        original(requests_in_batch, *args, **kwargs)

    def _describe(self, states: list[Any], past: np.ndarray, lengths: np.ndarray) -> None:
        self._sweep()
        self.desk.tidy()
        names = [state.request_id for state in states]
        new = [state for state in states if state.request_id not in self._slots]
        if len(new) > self._slots.free:  # some that are not in this pass must do without
            self._slots.keep(set(names))
        for state in new:
            flight = self._flight(state)
            self._slots.start(state.request_id, flight.prompt, flight.place)
        self._slots.describe(names, past, lengths)

    def _sweep(self) -> None:
        """Forget the requests that have ended."""
        active, waiting = self._scheduler.active_requests, self._scheduler.waiting_requests
        for name, state in active.items():
            if name not in self._flights:  # a fork, which may outlive its parent before its own first pass
                self._flight(state)
        self._slots.keep(active)
        gone = [name for name in self._flights if name not in active and name not in waiting]
        dropped = {self._flights.pop(name) for name in gone}
        for flight in dropped.difference(self._flights.values()):  # a fork has its parent's
            flight.ended = True

    def _compute(self, original: Any, *args: Any, **kwargs: Any) -> None:
        """Only within is the layer an edited one: any other forward on this model is the base model's."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self.context.device))
        with self.desk.passing:
            self.desk.site.context = self.context
            try:
                original(*args, **kwargs)
            finally:
                self.desk.site.context = self.desk.idle
        self._stopped = set(self._slots.stopped())  # the host waits for this pass next, whatever it asks
        for name in self._stopped:
            self.desk.lost(name, self._flights[name])

    def _deliver(self, original: Any, outputs: Any) -> None:
        """The results of a pass, all at once; one without its edit is none."""
        original(withheld(outputs, self._stopped))
        self._in_pass = [state for state in self._in_pass if state.request_id in self._scheduler.active_requests]

    # Sharing of blocks

    def _search(self, original: Any, request_id: str, prompt_ids: list[int]) -> int:
        flight = self._flights.get(request_id)
        if flight is not None and flight.edited:  # of one that starts anew, the tokens after the prompt are answers
            prompt_ids = prompt_ids[: flight.prompt]
        return original(request_id, prompt_ids)

    def _mark(self, original: Any, request_id: str, token_ids: list[int], new_blocks: int) -> None:
        flight = self._flights.get(request_id)
        if flight is not None and flight.edited:
            token_ids = token_ids[: flight.prompt - 1]
        original(request_id, token_ids, new_blocks)


def _take_off(seams: list[tuple[Any, str]]) -> None:
    for owner, name in reversed(seams):
        delattr(owner, name)
    seams.clear()
