"""A transformers model that answers by the edits of stores: in continuous batching, and in `generate`."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..editing.backbone.decoder import Decoder
from ..editing.backbone.identity import adapter_sample, another_adapter, another_model, weight_sample
from ..editing.backbone.modes import own_modes
from ..editing.backbone.patch import Patch
from ..editing.backbone.wrappers import unwrapped
from ..editing.edits.tokenizer import Tokenizer
from ..editing.errors import CorrigendaError
from ..editing.memories.paged_banks import PagingCounts
from ..editing.model.generation import GenerateProvider, prompts_of
from ..editing.model.layer import EditedOutput
from ..editing.model.read_prompts import ReadPrompts
from ..editing.routers.context import RoutingContext
from ..editing.store.snapshots import Snapshot
from .batching_config import batching_config
from .catalogue import Catalogue
from .continuous import SPLIT, BatchedRequests
from .deciding import CallDecisions
from .errors import ServingError
from .in_flight import RequestsInFlight
from .log import logger_of
from .memory import ServedMemory
from .metrics import Metrics
from .paged_memory import PagedServedMemory
from .requests import CallRequests, call_requests
from .served_edits import Change, ServedEdit
from .settings import ServingSettings, resolved

__all__ = ["ServedModel"]

logger = logger_of("corrigenda")


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
        start = self.catalogue.start
        if device.type != "cpu":  # captured passes read the memory where it is
            self.memory.reserve(
                self.settings.capacity or max(1024, 2 * len(start.added)), self.catalogue.edits_by_form()
            )
        for folder, needed in start.needed.items():
            self.memory.load(folder, needed)
        self.metrics = Metrics()
        self.metrics.changed(self.catalogue, len(start.added), 0)
        idle = RoutingContext(device, 1, 1)
        output = EditedOutput(self.memory.banks, idle)
        self.requests = RequestsInFlight(self.catalogue, self.memory, self.metrics, output.site, idle)
        self._changing = threading.RLock()  # of one change at a time
        self._patch = Patch()
        self._patch.hook(decoder.down_proj(config.layer), output)
        self._alone = RoutingContext(device)
        nobodys = CallDecisions(self.catalogue, self.requests.placing(), ())
        self._provider = GenerateProvider(decoder.model, nobodys, self._alone, self._patch)
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
                bound.arguments, self.requests.idle.device, self.settings.resident
            )
            manager = original(*bound.args, **bound.kwargs)
            if getattr(manager, "_corrigenda", None) is None:
                manager._corrigenda = BatchedRequests(manager, self.requests)
                self.requests.managers.add(manager._corrigenda)
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
        """As transformers' `generate`, for prompts `[rows, length]`, padded on either side; `tenants` and `provenance`
        are as in `generate_batch`.

        Nothing else runs on the model meanwhile: a running batch waits.
        """
        model = unwrapped(self.model)
        prompt, mask = prompts_of(model, inputs, kwargs)
        owners = self._owners(tenants, len(prompt))
        requests = self.requests
        with requests.between_passes():
            deciding = self._provider.method = CallDecisions(self.catalogue, requests.placing(), owners)
            read = ReadPrompts.of(deciding, model, prompt, mask)
            read.take_place(kwargs)
            with (
                own_modes(self.model, autocast=True),
                self._provider.session(read.prompt, read.mask) as session,
                requests.passing,
            ):
                requests.site.context = self._alone
                try:
                    output = read.put_back(self.model.generate(read.prompt, **kwargs))
                finally:
                    requests.site.context = requests.idle
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

    @property
    def paging(self) -> PagingCounts:
        """How often an edit's rows were where the layer reads, or had to be put there first, since the start."""
        return self.memory.counts

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
            self.requests.hold(change, lambda: self.catalogue.stage(change))
            return change.to_dict(self.catalogue.version)

    def drop_staged(self, folder: str | Path, tenant: str | None = None) -> dict[str, Any]:
        """Let go of what was staged of a folder: the same."""
        with self._changing:
            self.catalogue.drop_staged(tenant, resolved(folder))
            self.requests.rows_may_go()
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
        version = self.requests.hold(change, lambda: self.catalogue.publish(change))
        self.metrics.changed(self.catalogue, len(change.added), len(change.removed))
        return change.to_dict(version)

    def close(self) -> None:
        """Stop continuous batching at once: requests in flight fail."""
        for requests in list(self.requests.managers):
            if requests.running:
                requests.manager.stop(hard_stop=True)

    def detach(self) -> Any:
        """Take the patch off and give back the base model, its module and bits as they were."""
        if any(requests.running for requests in self.requests.managers):
            raise CorrigendaError("The model is answering: stop its continuous batching before detaching it.")
        for requests in self.requests.managers:
            requests.remove()
            del requests.manager._corrigenda
        self._patch.remove()
        return self.model
