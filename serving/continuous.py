"""Continuous batching in transformers: where a manager takes requests in, makes passes, and shares blocks."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch

from ..editing.errors import CorrigendaError
from ..editing.routers.context import RoutingContext
from .edit_header import current_request
from .errors import ServingError
from .outcome import Expected
from .recovery import fail_pass, fail_stopped, withheld
from .requests import RequestHost, ServedRequest, asking_tenant, call_requests
from .slots import Slots

_ATTRIBUTE = "_corrigenda"
"""Under which name a `ServedRequest` travels on transformers' own state of the request."""

# Private places of transformers where a manager's requests are seen: whose method is wrapped, its name, and by what.
# `launcher.py` has those of its HTTP server; tests/serving/test_batching_changes.py pins each to a signature.
_MANAGER_SEAMS = (
    ("manager", "add_request", "_on_add_request"),
    ("manager.input_queue", "put", "_on_arrival"),
    ("manager", "_create_batch_processor", "_on_processor"),
    ("manager", "_generation_loop_body", "_around_loop"),
    ("manager", "stop", "_on_stop"),
)
_PROCESSOR_SEAMS = (
    ("scheduler", "add_waiting_request", "_on_waiting"),
    ("scheduler", "schedule_batch", "_on_scheduled"),
    ("inputs_and_outputs", "prepare_batch_tensors", "_before_pass"),
    ("model_runner", "compute_batch", "_around_pass"),
    ("output_router", "deliver_batch", "_on_results"),
    ("cache", "search_prefix_match", "_blocks_to_take"),
)


SPLIT = "Edits cannot be served from a model in several shards: load it on one device, or serve it by vLLM."


class BatchedRequests:
    """The seams of one manager: arrival, the pass about to be made, and which blocks requests share.

    Keys and values from an edited request's last prompt token on are made under its edit. A block that holds any of
    them is never offered to other requests, and such a request takes none that reach so far: whoever reads the same
    tokens in a prompt later, the next turn of a conversation above all, reads them as the base model does, as in a
    fresh pass. All other blocks are the base model's and are shared as ever.
    """

    def __init__(self, manager: Any, host: RequestHost) -> None:
        if manager.distributed_helper.tp_size > 1:
            raise CorrigendaError(SPLIT)
        self.manager = manager
        self.host = host
        self.context: RoutingContext | None = None
        self._slots: Slots | None = None
        self._scheduler: Any = None
        self._stream: Any = None
        self._manager_seams: list[tuple[Any, str]] = []  # of the manager
        self._processor_seams: list[tuple[Any, str]] = []  # of its processor, which a stop ends
        self._requests: dict[str, ServedRequest] = {}  # of the generation's thread
        self._queued: weakref.WeakValueDictionary[str, ServedRequest] = weakref.WeakValueDictionary()
        self._in_pass: list[Any] = []  # states of requests that the pass in hand still owes a result
        self._stopped: set[str] = set()  # requests of the pass whose edit the layer left out
        self._arriving = threading.Lock()
        for owner, name, handler in _MANAGER_SEAMS:
            self._wrap(self._manager_seams, attrgetter(owner)(self), name, getattr(self, handler))
        if manager.batch_processor is not None:
            self._wire(manager.batch_processor)

    def _wrap(self, seams: list[tuple[Any, str]], owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            return wrapper(original, *args, **kwargs)

        setattr(owner, name, call)
        seams.append((owner, name))

    def remove(self) -> None:
        """Take the seams off."""
        self._unwire()
        _unwrap(self._manager_seams)

    @property
    def running(self) -> bool:
        return self.manager.is_running()

    # Arrival, in the thread of whoever asks

    def _on_add_request(
        self,
        original: Any,
        input_ids: list[int],
        request_id: str | None = None,
        max_new_tokens: int | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> str | None:
        """`add_request`, which also takes a `tenant`, and refuses what there is no room for."""
        batch, request = call_requests.get(), current_request()
        tenant = None if request is None else request.tenant
        if batch is not None:
            tenant = batch.tenants.get(id(input_ids))
        token = asking_tenant.set(kwargs.pop("tenant", tenant))
        try:
            wanted = self.manager.generation_config.max_new_tokens if max_new_tokens is None else max_new_tokens
            return original(input_ids, request_id, self._new_tokens(len(input_ids), wanted), *args, **kwargs)
        except ServingError as error:
            if batch is not None:
                batch.refused = error
            raise
        finally:
            asking_tenant.reset(token)

    def _new_tokens(self, prompt: int, wanted: int | None) -> int | None:
        """How many tokens the answer to a prompt may have, which is cut where the room ends.

        A prompt that never fits would be scheduled and put off without end, and fail every request beside it.
        """
        room = self._room()
        if room is None:
            return wanted
        if prompt >= room:
            raise ServingError(
                f"The prompt has {prompt:,} tokens, and there is room for {room:,} with the answer: shorten it."
            )
        return room - prompt if wanted is None else min(wanted, room - prompt)

    def _room(self) -> int | None:
        """Tokens of the longest request: what the cache holds, or the positions that the model has, if those are fewer.

        None where neither is known, before the cache is made.
        """
        processor, config = self.manager.batch_processor, self.manager.model.config
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        held = None if processor is None else processor.cache.max_tokens_read
        settings = self.manager.continuous_batching_config
        if held is None and settings.num_blocks is not None:
            held = settings.num_blocks * settings.page_size
        return min((limit for limit in (positions, held) if limit is not None), default=None)

    def _on_arrival(self, original: Any, state: Any, *args: Any, **kwargs: Any) -> None:
        """The decision belongs to a request's arrival: what changes later is for those that come later."""
        name, scheduler = state.request_id, self._scheduler
        with self._arriving:
            live = () if scheduler is None else (scheduler.active_requests, scheduler.waiting_requests)
            if name in self._queued or any(name in requests for requests in live):
                raise ServingError(f'A request with the id "{name}" is in flight: give another id.', 409)
            served = self.host.admit(name, state.initial_tokens, asking_tenant.get())
            setattr(state, _ATTRIBUTE, served)
            self._queued[name] = served
        batch, request = call_requests.get(), current_request()
        if batch is not None:
            served.batch = batch
            batch.admissions[name] = served.admission
        served.expected = Expected(served.admission, request)
        original(state, *args, **kwargs)

    # Passes, in the generation's thread

    def _on_processor(self, original: Any) -> Any:
        processor = original()
        self._wire(processor)
        return processor

    def _around_loop(self, original: Any, batch_processor: Any, *args: Any, **kwargs: Any) -> bool:
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

    def _on_stop(self, original: Any, *args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        if not self.running:
            self._unwire()

    def _unwire(self) -> None:
        """Let go of a processor, whose cache is most of a GPU's memory."""
        _unwrap(self._processor_seams)
        self._scheduler = self._stream = None
        self._requests.clear()

    def _wire(self, processor: Any) -> None:
        if processor.scheduler is self._scheduler:
            return
        self._unwire()
        if processor.use_async_batching:
            raise CorrigendaError(
                "With use_async_batching a pass is described while another reads the description: set it to False."
            )
        device, requests = processor.model_device, processor.scheduler.max_requests_per_batch
        self.host.check_alone()
        tokens = max(processor.cache.max_batch_tokens, requests)
        self.context = RoutingContext(torch.device(device), tokens, requests)
        self._slots = Slots(self.context, requests, tokens, vocabulary=self.host.vocabulary())
        self._stream = processor.inputs_and_outputs.compute_stream
        self._scheduler = processor.scheduler
        for owner, name, handler in _PROCESSOR_SEAMS:
            self._wrap(self._processor_seams, getattr(processor, owner), name, getattr(self, handler))
        for allocator in processor.cache.cache_allocators.values():
            self._wrap(self._processor_seams, allocator, "mark_complete_blocks", self._blocks_to_share)

    def _on_waiting(self, original: Any, state: Any) -> None:
        """A new request, one that lost its cache and starts anew, or a fork for which there was no room."""
        setattr(state, _ATTRIBUTE, self._request_of(state))
        original(state)
        # Once the scheduler has it, so that its name is always found in one of the two.
        self._queued.pop(state.request_id, None)

    def _request_of(self, state: Any) -> ServedRequest:
        name = state.request_id
        served = getattr(state, _ATTRIBUTE, None) or self._requests.get(name)
        if served is None:
            served = self._requests.get(name.rpartition("__child#")[0])
        if served is None:  # it came before the edits did
            length = state._true_initial_tokens or len(state.initial_tokens)
            served = self.host.admit(name, state.initial_tokens[:length], None)
        self._requests[name] = served
        return served

    def _on_scheduled(self, original: Any, *args: Any) -> Any:
        found = original(*args)
        self._in_pass = [future.state for future in found[0] or ()]
        return found

    def _before_pass(self, original: Any, requests_in_batch: Sequence[Any], *args: Any, **kwargs: Any) -> None:
        past = np.array([future.state.position_offset for future in requests_in_batch])
        lengths = np.array([future.query_length for future in requests_in_batch])
        active = self._scheduler.active_requests
        if all(future.state.request_id in active for future in requests_in_batch):
            tokens = [token for future in requests_in_batch for token in future.state.tokens_to_process]
            self._describe([future.state for future in requests_in_batch], past, lengths, tokens)
        else:  # a warm-up, whose requests no scheduler knows
            count = int(lengths.sum())
            nobody = torch.zeros(count, dtype=torch.int32, device="cpu")
            self.context.describe(nobody, nobody.bool(), nobody.bool())
        original(requests_in_batch, *args, **kwargs)

    def _describe(self, states: list[Any], past: np.ndarray, lengths: np.ndarray, tokens: list[int]) -> None:
        self._sweep()
        self.host.drop_unread_rows()
        names = [state.request_id for state in states]
        new = [state for state in states if state.request_id not in self._slots]
        if len(new) > self._slots.free:  # some that are not in this pass must do without
            self._slots.keep(set(names))
        for state in new:
            served = self._request_of(state)
            written = state.initial_tokens + state.generated_tokens
            said = written[served.prompt : state.position_offset]
            place = self.host.place_of(served, self.reading)
            self._slots.start(state.request_id, served.prompt, place, served.plan, said)
        self._slots.describe(names, past, lengths, torch.tensor(tokens, dtype=torch.int64, device="cpu"))

    def reading(self) -> set[str | None]:
        """The keys of the edits whose rows requests in flight read."""
        if self._slots is None:
            return set()
        return {served.admission.key for name, served in list(self._requests.items()) if name in self._slots}

    def _sweep(self) -> None:
        """Forget the requests that have ended."""
        active, waiting = self._scheduler.active_requests, self._scheduler.waiting_requests
        for name, state in active.items():
            if name not in self._requests:  # a fork, which may outlive its parent before its own first pass
                self._request_of(state)
        self._slots.keep(active)
        gone = [name for name in self._requests if name not in active and name not in waiting]
        dropped = {self._requests.pop(name) for name in gone}
        for served in dropped.difference(self._requests.values()):  # a fork has its parent's
            served.ended = True

    def _around_pass(self, original: Any, *args: Any, **kwargs: Any) -> None:
        """Only within is the layer an edited one: any other forward on this model is the base model's."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self.context.device))
        with self.host.passing:
            self.host.site.context = self.context
            try:
                original(*args, **kwargs)
            finally:
                self.host.site.context = self.host.idle
        self._stopped = set(self._slots.stopped())  # the host waits for this pass next, whatever it asks
        for name in self._stopped:
            self.host.lost(name, self._requests[name])

    def _on_results(self, original: Any, outputs: Any) -> None:
        """The results of a pass, all at once; one without its edit is none."""
        outputs = withheld(outputs, self._stopped)
        for output in outputs:
            if output.is_finished() and output.request_id in self._requests:
                self._tell(output.request_id, output.generated_tokens)
        original(outputs)
        self._in_pass = [state for state in self._in_pass if state.request_id in self._scheduler.active_requests]

    def _tell(self, name: str, tokens: Sequence[int]) -> None:
        """Say what came of a request before its answer goes out."""
        served = self._requests[name]
        found = self.host.outcome(served, tokens)
        if served.expected is not None:
            served.expected.finished(found)
        if served.batch is not None:
            served.batch.admissions[name] = found

    # Sharing of blocks

    def _blocks_to_take(self, original: Any, request_id: str, prompt_ids: list[int]) -> int:
        served = self._requests.get(request_id)
        if served is not None and served.edited:  # of one that starts anew, the tokens after the prompt are answers
            prompt_ids = prompt_ids[: served.prompt]
        return original(request_id, prompt_ids)

    def _blocks_to_share(self, original: Any, request_id: str, token_ids: list[int], new_blocks: int) -> None:
        served = self._requests.get(request_id)
        if served is not None and served.edited:
            token_ids = token_ids[: served.prompt - 1]
        original(request_id, token_ids, new_blocks)


def _unwrap(seams: list[tuple[Any, str]]) -> None:
    for owner, name in reversed(seams):
        delattr(owner, name)
    seams.clear()
