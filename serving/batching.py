"""A transformers model that answers by the edits of stores: in continuous batching, and in `generate`."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..editing.backbone.decoder import Decoder
from ..editing.backbone.identity import adapter_sample, another_adapter, another_model, weight_sample
from ..editing.backbone.modes import own_modes
from ..editing.backbone.patch import Patch
from ..editing.backbone.wrappers import unwrapped
from ..editing.edits.spelling import Vocabulary
from ..editing.edits.tokenizer import Tokenizer
from ..editing.errors import CorrigendaError
from ..editing.memories.paged_banks import PagingCounts
from ..editing.memories.row_form import Rows
from ..editing.model.generation import GenerateProvider, prompts_of
from ..editing.model.layer import EditedOutput
from ..editing.routers.context import RoutingContext
from ..editing.shown import shown
from ..editing.store.snapshots import Snapshot
from .batching_config import batching_config
from .catalogue import Catalogue
from .continuous import SPLIT, BatchedRequests
from .deciding import CallDecisions
from .errors import ServingError
from .log import logger_of
from .memory import ServedMemory
from .metrics import Metrics
from .outcome import Outcomes
from .paged_memory import PagedServedMemory
from .requests import CallRequests, ServedRequest, call_requests
from .served_edits import Admission, Change, ServedEdit
from .settings import ServingSettings, resolved

__all__ = ["ServedModel"]

logger = logger_of("corrigenda")

_Done = TypeVar("_Done")


class ServedModel:
    """A loaded model whose every sequence is answered by its own edit, if one is about its prompt.

    A request is decided when it comes, from its prompt, and keeps its edit to its end; edits that are loaded or undone
    meanwhile are for requests that come later. Continuous batching is transformers' own: `generate_batch` here or on
    the model, or a manager of the model's `init_continuous_batching`, whose `add_request` also takes a `tenant`.
    The model is patched in place, on this instance alone; `detach` takes the patch off. Any other forward on it, and
    the model's own `generate`, is the base model's.
    """

    @own_modes()
    def __init__(self, model: Any, tokenizer: Tokenizer, edits: ServingSettings | str | Path | dict[str, Any]) -> None:
        if getattr(unwrapped(model), "_corrigenda", None) is not None:
            raise CorrigendaError("This model already carries edits: detach them before serving it.")
        self.model = model
        self.tokenizer = tokenizer
        self.settings = ServingSettings.parse(edits)
        self.catalogue = Catalogue(tokenizer, self.settings)
        config, decoder = self.catalogue.config, Decoder(model)
        if decoder.parts is not None:
            raise CorrigendaError(SPLIT)
        self._check_base(decoder)
        device = decoder.device(config.layer)
        dtype = model.get_input_embeddings().weight.dtype
        of_layer = (config, decoder.widths(config.layer), device, dtype, self.settings.rows)
        resident = self.settings.resident
        self.memory = ServedMemory(*of_layer) if resident is None else PagedServedMemory(resident, *of_layer)
        self._of_call: set[str] = set()  # edits that a call of `generate` reads
        start = self.catalogue.start
        if device.type != "cpu":  # captured passes read the memory where it is
            self.memory.reserve(
                self.settings.capacity or max(1024, 2 * len(start.added)), self.catalogue.edits_by_form()
            )
        for folder, needed in start.needed.items():
            self.memory.load(folder, needed)
        self.metrics = Metrics()
        self.metrics.changed(self.catalogue, len(start.added), 0)
        self._outcomes = Outcomes(self.catalogue, self.metrics, self.vocabulary())
        self._lock = threading.RLock()  # of what is admitted and of what the memory holds
        self._changing = threading.RLock()  # of one change at a time
        self.passing = threading.RLock()  # of one pass at a time, whichever manager's
        self._coming: frozenset[str] = frozenset()  # edits of the change that is being read
        self._requests: weakref.WeakSet[ServedRequest] = weakref.WeakSet()
        self._unread_rows = False
        self._managers: weakref.WeakSet[BatchedRequests] = weakref.WeakSet()
        self.idle = RoutingContext(device, 1, 1)
        output = EditedOutput(self.memory.banks, self.idle)
        self.site = output.site
        self._patch = Patch()
        self._patch.hook(decoder.down_proj(config.layer), output)
        self._alone = RoutingContext(device)
        self._provider = GenerateProvider(
            decoder.model, CallDecisions(self.catalogue, self._placed, ()), self._alone, self._patch
        )
        self._patch_init()
        self._patch.replace(decoder.model, "_corrigenda", self)

    def _check_base(self, decoder: Decoder) -> None:
        """Raise unless the stores' edits were written for this model."""
        base, config = self.catalogue.header["base"], self.catalogue.config
        if (layers := len(decoder)) == base["layers"]:  # else it may not have the layer at all
            found = {"widths": list(decoder.widths(config.layer)), "weights": weight_sample(decoder, config.layer)}
        else:
            found = {"layers": layers}
        recorded = {**base, "weights": self.catalogue.weight_sample}
        if sentence := another_model(self.settings.edits[0], recorded, found):
            raise ServingError(sentence, 422)
        if sentence := another_adapter(self.settings.edits[0], base, adapter_sample(decoder.model)):
            logger.warning(sentence)

    def _patch_init(self) -> None:
        original = unwrapped(self.model).init_continuous_batching
        signature = inspect.signature(original)

        @functools.wraps(original)
        def init(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.arguments["continuous_batching_config"] = batching_config(
                bound.arguments, self.idle.device, self.settings.resident
            )
            manager = original(*bound.args, **bound.kwargs)
            if getattr(manager, "_corrigenda", None) is None:
                manager._corrigenda = BatchedRequests(manager, self)
                self._managers.add(manager._corrigenda)
            return manager

        self._patch.replace(unwrapped(self.model), "init_continuous_batching", init)

    # Answers

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of questions, put as the edits were."""
        form = self.catalogue.prompts
        return [form.encode(form.wrap(prompt)) for prompt in prompts]

    def generate_batch(
        self,
        inputs: Sequence[Sequence[int]],
        *,
        tenants: str | Sequence[str | None] | None = None,
        provenance: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As transformers' `generate_batch`: outputs by request, in the order of the prompts `inputs` (token ids).

        tenants: whose the prompts are, one name for all or one each. provenance: give back a pair, the outputs and an
        `Admission` for each.
        """
        prompts = [list(prompt) for prompt in inputs]
        owners = self._owners(tenants, len(prompts))
        batch = CallRequests({id(prompt): owner for prompt, owner in zip(prompts, owners)})
        token = call_requests.set(batch)
        try:
            outputs = self.model.generate_batch(prompts, **kwargs)
        finally:
            call_requests.reset(token)
        if batch.refused is not None:
            raise batch.refused
        if not provenance:
            return outputs
        decided = batch.admissions
        return outputs, {name: decided.get(name) or decided[name.partition("__child#")[0]] for name in outputs}

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        *,
        tenants: str | Sequence[str | None] | None = None,
        provenance: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As transformers' `generate`, for prompts `[rows, length]`; `tenants` and `provenance` as in `generate_batch`.

        Nothing else runs on the model meanwhile: a running batch waits.
        """
        prompt, mask = prompts_of(unwrapped(self.model), inputs, kwargs)
        owners = self._owners(tenants, len(prompt))
        with self._between_passes():
            deciding = self._provider.method = CallDecisions(self.catalogue, self._placed, owners)
            self._of_call = set()
            with (
                own_modes(self.model, autocast=True),
                self._provider.session(prompt, mask) as session,
                self.passing,
            ):
                self.site.context = self._alone
                try:
                    output = self.model.generate(prompt, **kwargs)
                finally:
                    self.site.context = self.idle
                unsaid = session.unsaid().tolist()
        if not provenance:
            return output
        return output, [one.without_edit() if left else one for one, left in zip(deciding.admissions, unsaid)]

    def _owners(self, tenants: str | Sequence[str | None] | None, count: int) -> list[str | None]:
        owners = [tenants] * count if tenants is None or isinstance(tenants, str) else list(tenants)
        if len(owners) != count:
            raise CorrigendaError(f"There are {count} prompts and {len(owners)} tenants: name one tenant each.")
        for owner in set(owners):
            self.catalogue.served(owner)  # `generate_batch` would only log what is raised within
        return owners

    # What a manager's requests ask (`RequestHost`)

    def admit(self, request: str, tokens: Sequence[int], tenant: str | None) -> ServedRequest:
        """Decide a request's edit and keep that edit's rows while the request is in flight."""
        with self._lock:
            admission = self._admitted(request, self.catalogue.admit(tokens, tenant))
            rows = None if admission.key is None else self.memory.rows_of(admission.key)
            served = ServedRequest(admission, self.memory.place(admission.key), len(tokens), rows)
            self._requests.add(served)
        return served

    def _admitted(self, request: str, admission: Admission) -> Admission:
        """What is decided for a request, by what rows are here.

        Rows are here for every edit that may answer. Should any be missing all the same, the base model answers, and
        nothing says that an edit did.
        """
        if admission.key is not None and not self.memory.knows(admission.key):
            logger.error("request %s: the rows of edit %s are missing, the base model answers", request, admission.key)
            admission = admission._replace(edit=None, lost=True)
        self.metrics.admitted(admission)
        _log(request, admission)
        return admission

    def _placed(self, request: str, admission: Admission) -> tuple[Admission, int]:
        """The same, and where the rows of its edit are: -1 for none. For a row of a call of `generate`."""
        admission = self._admitted(request, admission)
        key = admission.key
        rows = None if key is None else self.memory.rows_of(key)
        if key is None or rows is None:
            return admission, self.memory.place(key)
        self._of_call.add(key)
        kept = self._of_call.union(*(requests.reading() for requests in list(self._managers)))
        return admission, self._bring(key, rows, kept)

    def place_of(self, served: ServedRequest, in_pass: Callable[[], set[str | None]]) -> int:
        """Where the rows of a request's edit are, before its first pass."""
        key = served.admission.key
        if key is None or served.rows is None:  # they stay where they are
            return served.place
        with self._lock:
            return self._bring(key, served.rows, in_pass())

    def _bring(self, key: str, rows: Rows, kept: Container[str | None]) -> int:
        place = self.memory.bring(key, rows, kept)
        self.metrics.paged(self.memory.counts)
        return place

    def check_alone(self) -> None:
        """Raise where another batch runs, and edits make room for others: each knows its own requests alone."""
        if self.settings.resident is not None and sum(one.running for one in list(self._managers)) > 1:
            raise CorrigendaError('With "resident" one continuous batch runs at a time: stop the other one first.')

    @property
    def paging(self) -> PagingCounts:
        """How often an edit's rows were where the layer reads, or had to be put there first, since the start."""
        return self.memory.counts

    def outcome(self, served: ServedRequest, tokens: Sequence[int]) -> Admission:
        """What came of a request, by one of its answers."""
        return self._outcomes.of(served.admission, tokens)

    def vocabulary(self) -> Vocabulary:
        return self.catalogue.prompts.vocabulary

    def lost(self, request: str, served: ServedRequest) -> None:
        """A request's edit was left out at the layer; its answer is withheld."""
        logger.error(
            "request %s fails: the values of edit %s are no numbers, or too large", request, served.admission.key
        )
        self.metrics.lost(1)

    def drop_unread_rows(self) -> None:
        """Drop rows that nobody reads any more. Between two passes."""
        if not self._unread_rows:
            return
        with self._lock:
            known = self.catalogue.keys()
            in_flight = {served.admission.key for served in self._requests if not served.ended}
            self.memory.keep(known | in_flight | self._coming)
            self._unread_rows = bool(in_flight - known - {None})

    # Changes

    @property
    def version(self) -> int:
        """The number of the edits' version, which every change counts up."""
        return self.catalogue.version

    def served(self, tenant: str | None = None) -> list[ServedEdit]:
        """The edits that a tenant's requests are answered by."""
        return self.catalogue.served(tenant)

    def why(self, prompt: str, tenant: str | None = None) -> dict[str, Any]:
        """The edits that come nearest to a prompt, best first, and whether one applies."""
        return self.catalogue.why(prompt, tenant)

    def load(self, folder: str | Path, tenant: str | None = None, snapshot: Snapshot | None = None) -> dict[str, Any]:
        """Take in a folder of edits, or read it anew: `version`, and ids that were `added` and `removed`.

        snapshot: as of which it is read, and stays so until it is loaded again (`Catalogue.read`).
        """
        with self._changing:
            return self._take(self.catalogue.read([(tenant, resolved(folder))], snapshot=snapshot))

    def stage(self, folder: str | Path, snapshot: Snapshot, tenant: str | None = None) -> dict[str, Any]:
        """Have all that `load` of this snapshot takes ready, and go on as before: the same, with the version of now."""
        with self._changing:
            change = self.catalogue.read([(tenant, resolved(folder))], snapshot=snapshot)
            self._hold(change, lambda: self.catalogue.stage(change))
            return change.to_dict(self.catalogue.version)

    def drop_staged(self, folder: str | Path, tenant: str | None = None) -> dict[str, Any]:
        """Let go of what was staged of a folder: the same."""
        with self._changing:
            self.catalogue.drop_staged(tenant, resolved(folder))
            self._unread_rows = True
            return {"version": self.catalogue.version, "added": [], "removed": []}

    def unload(self, folder: str | Path, tenant: str | None = None) -> dict[str, Any]:
        """Serve a folder's edits no longer, to all or to a tenant: the same."""
        with self._changing:
            return self._take(self.catalogue.unload(tenant, resolved(folder)))

    def forget(self, tenant: str) -> dict[str, Any]:
        """Know a tenant no longer, nor its folders: the same. Its requests are refused from then on."""
        with self._changing:
            return self._take(self.catalogue.forget(tenant))

    def undo(
        self, edit: str, tenant: str | None = None, store: str | Path | None = None, author: str | None = None
    ) -> dict[str, Any]:
        """Undo an edit in its store and here: the same."""
        with self._changing:
            path = None if store is None else resolved(store)
            return self._take(self.catalogue.undo(edit, tenant, path, author))

    def redo(
        self, edit: str, tenant: str | None = None, store: str | Path | None = None, author: str | None = None
    ) -> dict[str, Any]:
        """Put an undone edit in again, in its store and here: the same."""
        with self._changing:
            path = None if store is None else resolved(store)
            return self._take(self.catalogue.redo(edit, tenant, path, author))

    def _take(self, change: Change) -> dict[str, Any]:
        """Answer by a change from now on."""
        version = self._hold(change, lambda: self.catalogue.publish(change))
        self.metrics.changed(self.catalogue, len(change.added), len(change.removed))
        return change.to_dict(version)

    @own_modes()
    def _hold(self, change: Change, then: Callable[[], _Done]) -> _Done:
        """Read a change's rows while passes run; write them, and do what comes `then`, between two."""
        with self._lock:  # rows that are still here for a request in flight are not read: they must stay
            self._coming = frozenset().union(*change.needed.values())
        try:
            rows = [self.memory.read(folder, needed) for folder, needed in change.needed.items()]
            with self._between_passes():
                try:
                    for records in rows:
                        self.memory.put(records)
                    return then()
                finally:
                    self._coming = frozenset()
                    self._unread_rows = True
                    self.drop_unread_rows()
        finally:
            self._coming = frozenset()
            self._unread_rows = True

    @contextlib.contextmanager
    def _between_passes(self) -> Iterator[None]:
        """Within: running batches wait, and nobody is admitted."""
        with contextlib.ExitStack() as stack:
            for requests in list(self._managers):
                if requests.running:
                    with contextlib.suppress(RuntimeError):  # it stopped just now
                        stack.enter_context(requests.manager.pause())
            stack.enter_context(self._lock)
            yield
            if self.site.context.device.type == "cuda":
                torch.cuda.synchronize(self.site.context.device)

    def close(self) -> None:
        """Stop continuous batching at once: requests in flight fail."""
        for requests in list(self._managers):
            if requests.running:
                requests.manager.stop(hard_stop=True)

    def detach(self) -> Any:
        """Take the patch off and give back the base model, its module and bits as they were."""
        if any(requests.running for requests in self._managers):
            raise CorrigendaError("The model is answering: stop its continuous batching before detaching it.")
        for requests in self._managers:
            requests.remove()
            del requests.manager._corrigenda
        self._patch.remove()
        return self.model


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
