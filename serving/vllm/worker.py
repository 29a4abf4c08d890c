"""A worker's part: the edits' rows beside its layer, and what can be asked of it by name over all workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ...editing.backbone.identity import at_places, same_part
from ...editing.backbone.loading import load_tokenizer
from ...editing.edits.answer_start import AnswerPlan
from ...editing.edits.spelling import Vocabulary
from ...editing.errors import CorrigendaError
from ...editing.methods.associative.config import row_form
from ...editing.model import saving
from ...editing.routers.context import RoutingContext
from ..errors import ServingError
from ..log import logger_of
from ..memory import ServedMemory, edit_key
from ..settings import ServingSettings
from ..slots import Slots
from ..stores import active_snapshot, open_store, served_config
from .keys import LAYER, edit_of, plan_of, settings_in
from .protocols import EngineConfig, SamplingParams

logger = logger_of("vllm.corrigenda")


class RequestInfo(NamedTuple):
    """What a worker must know of a request: how long its prompt is, the key of the edit that answers it, and how that
    edit's answer can be said."""

    prompt_tokens: int
    key: str | None
    plan: AnswerPlan | None = None


def request_info(prompt_tokens: int, sampling_params: SamplingParams) -> RequestInfo:
    """From what the front end left in a request's sampling parameters (`admission`)."""
    return RequestInfo(prompt_tokens, edit_of(sampling_params), plan_of(sampling_params))


class WorkerEdits:
    """The memory of the edited layer in one worker, and the slots of the requests that it is computing."""

    def __init__(self, vllm_config: EngineConfig) -> None:
        settings = ServingSettings.parse(settings_in(vllm_config))
        widths = tuple(vllm_config.additional_config[LAYER]["widths"])
        device = torch.device(vllm_config.device_config.device)
        with torch.device(device):
            self._load(settings, widths, device, vllm_config)

    def _load(
        self, settings: ServingSettings, widths: tuple[int, int], device: torch.device, vllm_config: EngineConfig
    ) -> None:
        self.sample = None
        self.memory: ServedMemory | None = None
        wanted: dict[Path, dict[str, int]] = {}
        forms = []
        for path in settings.folders:
            store = open_store(path, active_snapshot(path))
            try:
                config = served_config(store, settings.router)
                forms.append(row_form(config))
                if self.memory is None:
                    self.sample = saving.weight_sample_of(store)
                    self.memory = ServedMemory(config, widths, device, vllm_config.model_config.dtype, settings.rows)
                wanted[path] = {edit_key(store.history.edits[seq]): seq for seq in store.history.applied()}
            finally:
                store.close()
        count = sum(map(len, wanted.values()))
        self.memory.reserve(settings.capacity or max(1024, 2 * count), forms)
        for path, edits in wanted.items():
            self.memory.load(path, edits)
        scheduler = vllm_config.scheduler_config
        self.context = RoutingContext(device, scheduler.max_num_batched_tokens, scheduler.max_num_seqs)
        model = vllm_config.model_config
        self.slots = Slots(
            self.context,
            scheduler.max_num_seqs,
            scheduler.max_num_batched_tokens,
            vocabulary=Vocabulary(load_tokenizer(model.tokenizer or model.model)),
        )
        self.lost: set[str] = set()
        self.error: Exception | None = None

    def describe(
        self,
        requests: Sequence[str],
        past: np.ndarray,
        lengths: np.ndarray,
        ask: Callable[[str], RequestInfo],
        tokens: torch.Tensor | None = None,
    ) -> None:
        """Tell the layer about the next pass, whose `tokens` these are, asking for requests that have no slot yet.

        Where that raises, the base model answers, and requests that are not its own are lost.
        """
        try:
            self._describe(requests, past, lengths, ask, tokens)
        except Exception as error:
            logger.exception("A pass of %d requests could not be described: edits are left out of it.", len(requests))
            self._lose([request for request in requests if _may_be_edited(ask, request)], repr(error))
            self.context.gate.zero_()  # what is captured reads these
            self.context.row.fill_(-1)
            self.context.stop()

    def _describe(
        self,
        requests: Sequence[str],
        past: np.ndarray,
        lengths: np.ndarray,
        ask: Callable[[str], RequestInfo],
        tokens: torch.Tensor | None,
    ) -> None:
        for request in requests:
            if request not in self.slots:
                if not self.slots.free:
                    self.slots.keep(set(requests))
                what = ask(request)
                place = self.memory.place(what.key)
                if what.key is not None and place < 0:
                    self._lose([request], f"the rows of edit {what.key} are not loaded")
                self.slots.start(request, what.prompt_tokens, place, what.plan if place >= 0 else None)
        self.slots.describe(requests, past, lengths, tokens)

    def computed(self, requests: Sequence[str]) -> None:
        """Note which of a pass's requests have lost their edit in it, once that is computed."""
        error, self.error = self.error, None
        if error is not None:
            logger.error("The memory could not be read in a pass.", exc_info=error)
            self._lose(self.slots.edited(requests), repr(error))
        stopped = [request for request in self.slots.stopped(wait=False) if request not in self.lost]
        self._lose(stopped, "its values are no numbers, or too large")

    def _lose(self, requests: Sequence[str], reason: str) -> None:
        self.lost.update(requests)
        for request in requests:
            logger.error("Request %s fails, for its edit cannot answer: %s.", request, reason)

    def take_lost(self) -> set[str]:
        """The requests that were lost since this was asked last."""
        lost, self.lost = self.lost, set()
        return lost

    def end(self, requests: Iterable[str]) -> None:
        """Give back the slots of requests that are over; what comes under one of these ids later is another request."""
        for request in requests:
            self.lost.discard(request)
            if request in self.slots:
                self.slots.end(request)

    @torch.no_grad()
    def check_weights(self, model: torch.nn.Module, vocabulary: int | None) -> None:
        """Raise where the model's weights are not those that the edits were written for.

        Compared are the final norm and the embedding, which no quantisation touches; not an embedding that is sharded
        over workers (`vocabulary` None), for a shard has other places.
        """
        if self.sample is None:
            return
        embedding, norm = self.sample.chunk(3)[:2]
        for name, parameter in model.named_parameters():
            if name.endswith("model.norm.weight"):
                wanted, found = norm, parameter
            elif name.endswith("embed_tokens.weight") and vocabulary is not None:
                wanted, found = embedding, parameter[:vocabulary]
            else:
                continue
            if not same_part(wanted, at_places(found, len(wanted))):
                raise CorrigendaError(f"The edits are for another model: its weights differ ({name}).")


class EditsWorker:
    """vLLM's worker extension: its methods can be called on all workers by `collective_rpc`, between two steps."""

    def corrigenda_load(self, folder: str, edits: dict[str, int]) -> dict[str, Any]:
        """Load edits of a store, by key their numbers; {"error", "status"} where that fails, and nothing was loaded."""
        edits_here = edits_of_worker(self)
        if edits_here is None:
            return {"loaded": 0}
        try:
            return {"loaded": edits_here.memory.load(folder, edits)}
        except CorrigendaError as error:
            return {"error": str(error), "status": error.status if isinstance(error, ServingError) else 422}

    def corrigenda_keep(self, keys: list[str]) -> int:
        """Drop the rows of all edits but these and those that requests in flight are answered by."""
        edits_here = edits_of_worker(self)
        return 0 if edits_here is None else edits_here.memory.keep(set(keys), edits_here.slots.places())


def _may_be_edited(ask: Callable[[str], RequestInfo], request: str) -> bool:
    try:
        return ask(request).key is not None
    except Exception:  # it may be what raised before
        return True


def edits_of_worker(worker: Any) -> WorkerEdits | None:
    """The edits of a worker, by either model runner; None where another stage of a pipeline has the layer."""
    runner = worker.model_runner
    holder = runner if hasattr(runner, "corrigenda") else getattr(runner, "model_state", None)
    return getattr(holder, "corrigenda", None)
