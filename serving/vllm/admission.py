"""The front end's part: which edit answers a request is decided when it comes, from its token ids."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import BeamSearchParams

from ...editing.backbone.loading import load_tokenizer
from ...editing.shown import shown
from ..access import tenant_of
from ..catalogue import Catalogue
from ..edit_header import current_request
from ..errors import ServingError
from ..log import logger_of
from ..metrics import Metrics
from ..outcome import Expected, Outcomes
from ..served_edits import Admission
from ..settings import ServingSettings
from .keys import CONFIG, settings_in
from .protocols import EngineConfig, EngineOutput, EngineRequest, OutputProcessor

logger = logger_of("vllm.corrigenda")

_REMEMBERED = 100_000
"""Decisions kept for those who ask later, and for knowing which edits are still read."""

_GRACE = 60.0
"""Seconds in which a request that was admitted may not be known to the output processor yet."""


def admitting(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    """`InputProcessor.__init__`: with edits, naming a request is also where it is admitted.

    `assign_request_id` is the last thing that happens to every request before it goes to the engine core.
    """
    original(self, *args, **kwargs)
    self.corrigenda = None
    if settings_in(self.vllm_config) is None:
        return
    self.corrigenda = Admissions(self.vllm_config)
    assign = self.assign_request_id

    def assign_request_id(request: EngineRequest) -> None:
        name, admission = request.request_id, self.corrigenda.admit(request)
        assign(request)
        if admission is not None:
            self.corrigenda.remember(name, request.request_id, admission)

    self.assign_request_id = assign_request_id
    resolve = self.resolve_watermarking

    def resolve_watermarking(params: Any) -> Any:
        # The one thing of this object that every beam search asks before its first request.
        if isinstance(params, BeamSearchParams):
            raise VLLMValidationError(
                "Beam search asks for every token as a prompt of its own, and no edit can tell where an answer began: "
                "a server with edits refuses it."
            )
        return resolve(params)

    self.resolve_watermarking = resolve_watermarking


class Admissions:
    """The catalogue of one engine, and the requests that it has decided."""

    def __init__(self, vllm_config: EngineConfig) -> None:
        model = vllm_config.model_config
        settings = ServingSettings.parse(settings_in(vllm_config))
        # Its own: a tokenizer that other threads use cannot be shared.
        self.catalogue = Catalogue(load_tokenizer(model.tokenizer or model.model), settings)
        self.metrics = Metrics()
        self.metrics.changed(self.catalogue, len(self.catalogue.keys()), 0)
        self._outcomes = Outcomes(self.catalogue, self.metrics, self.catalogue.prompts.vocabulary)
        # By the engine's name of a request, for several in flight may have one name of their callers' choice.
        self._recent: OrderedDict[str, _Decided] = OrderedDict()
        self._inner: dict[str, str] = {}

    def admit(self, request: EngineRequest) -> Admission | None:
        """Decide a request, and write the decision where workers and engine core read it.

        `vllm_xargs`, or a header, names a tenant; what it says under "corrigenda" is overwritten. A tenant's prompts
        are cached apart from others', so that nobody learns from timing what they ask. No version is part of that
        salt: what is cached is the base model's under every version (`prefix_cache`).
        """
        params = request.sampling_params
        if params is None or request.prompt_token_ids is None:
            return None
        extra = dict(params.extra_args or {})
        http = current_request()
        try:
            tenant = extra.get("tenant")
            if http is not None:
                tenant = tenant_of(http.tenant, tenant, self.catalogue.settings.tenant_header_only)
            admission = self.catalogue.admit(request.prompt_token_ids, tenant)
        except ServingError as error:
            self.metrics.refused()
            raise VLLMValidationError(str(error)) from error  # the only kind that its server answers with a 400
        extra[CONFIG] = {"edit": admission.key, "version": admission.version}
        if admission.plan is not None:  # in the words of JSON: what goes to other processes is no object of ours
            extra[CONFIG]["answer"] = {**admission.plan._asdict(), "arcs": [list(arc) for arc in admission.plan.arcs]}
        params.extra_args = extra
        if tenant is not None or request.cache_salt is not None:
            # With every salt that a client gives, and as JSON: else one could be chosen that is another tenant's.
            request.cache_salt = json.dumps([CONFIG, tenant, request.cache_salt])
        return admission

    def remember(self, name: str, inner: str, admission: Admission) -> None:
        """Keep what was decided for a request: `name` is its caller's for it, `inner` the engine's, which is unique."""
        self.metrics.admitted(admission)
        decided = _Decided(name, admission, self._outcomes)
        if admission.edit is not None:
            logger.info(
                "Request %s: edit %s (tenant %s, score %.3f, margin %.3f, version %d)",
                shown(name),
                shown(admission.edit.id),
                admission.tenant or "-",
                admission.score,
                admission.margin,
                admission.version,
            )
        self._recent[inner] = _of_process[inner] = decided
        self._inner[name] = inner
        if len(self._recent) > _REMEMBERED:
            oldest, gone = self._recent.popitem(last=False)
            if self._inner.get(gone.name) == oldest:
                del self._inner[gone.name]

    def of(self, request_id: str) -> Admission | None:
        """What came of a request, the last one by the id that its caller knows; until it ends, what was decided."""
        found = self._recent.get(self._inner.get(request_id))
        return None if found is None else found.outcome

    def pinned(self, output_processor: OutputProcessor) -> set[str]:
        """The keys of the edits that requests in flight are answered by.

        A request that has just been admitted counts as well: it may be on its way to the engine core.
        """
        running = {*output_processor.request_states, *output_processor.parent_requests}
        now = time.monotonic()
        return {
            decided.admission.key
            for inner, decided in self._recent.items()
            if decided.admission.key is not None and (now - decided.since < _GRACE or inner in running)
        }


class _Decided(Expected):
    """A request of an engine, called `name` by its caller; tokens of its answers, by the engine's names of these."""

    __slots__ = ("_outcomes", "_tokens", "name", "outcome", "since")

    def __init__(self, name: str, admission: Admission, outcomes: Outcomes) -> None:
        super().__init__(admission, current_request())
        self.name = name
        self.since = time.monotonic()
        self.outcome = admission
        self._outcomes = outcomes
        self._tokens: dict[str, list[int]] = {}

    def wrote(self, answer: str, tokens: Sequence[int], ended: bool) -> None:
        """Take in what a step has written of an answer."""
        if self.admission.edit is None:
            return
        said = self._tokens.setdefault(answer, [])
        said.extend(tokens)
        if ended:
            found = self._outcomes.of(self.admission, self._tokens.pop(answer))
            if found.edit is None:
                logger.info("Request %s: its answer was not edit %s.", shown(self.name), shown(self.admission.edit.id))
            self.finished(found)
            self.outcome = self.admission if self.said else found


_of_process: WeakValueDictionary[str, _Decided] = WeakValueDictionary()
"""By the engine's names: outputs come to an object that knows no engine."""


def wrote(output: EngineOutput, ended: bool) -> None:
    """Take in an engine's output; answers to one prompt are called by a number, a line, and their request's name."""
    decided = _of_process.get(output.request_id) or _of_process.get(output.request_id.partition("_")[2])
    if decided is not None:
        decided.wrote(output.request_id, output.new_token_ids, ended)
