"""Routing for transformers' `generate`: one decision a sequence, from its prompt, kept through cached decoding."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

from ..backbone.causal_model import CausalModel
from ..backbone.patch import Patch
from ..edits.answer_start import AnswerPlan
from ..edits.prompts import PromptFormat
from ..errors import CorrigendaError, warn_user
from ..routers.context import RoutingContext
from ..routers.progress import AnswerProgress
from ..routers.router import Decision
from .read_prompts import PAD_LEFT, ReadPrompts, padded_on_the_right


class DecidingMethod(Protocol):
    """What answering asks of a method: a `Method` has it, and a server that decides for it."""

    config: Any
    prompts: PromptFormat

    @property
    def reads_text(self) -> bool: ...

    def decide(self, prompts: Sequence[Sequence[int]]) -> Decision | None: ...

    def plans(self, prompts: Sequence[Sequence[int]], decision: Decision) -> Sequence[AnswerPlan | None]: ...

    def read_as(self, prompts: Sequence[Sequence[int]], decision: Decision) -> list[list[int]]: ...

    def located(self, route: Tensor) -> Tensor: ...

    def release(self) -> None: ...


class GenerateProvider:
    """Fills the routing context before every forward that `generate` makes.

    `prepare_inputs_for_generation` is the seam: it is called once per forward in greedy, sampled, beam, assisted and
    chunked generation, on the host and outside compiled calls. Where the prompt ends is known at `generate`'s entry
    alone, so a session is opened there.
    """

    def __init__(self, model: CausalModel, method: DecidingMethod, context: RoutingContext, patch: Patch) -> None:
        self.model = model
        self.method = method
        self.context = context
        self._session: Session | None = None
        self._aside = False
        self._patch = patch
        original = model.prepare_inputs_for_generation

        # `generate` reads the signature to check its keyword arguments, so the wrapper must show the original's.
        @functools.wraps(original)
        def prepare(input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
            inputs = original(input_ids, *args, **kwargs)
            if self._session is not None:
                self._session.describe(inputs, input_ids, kwargs.get("attention_mask"))
            return inputs

        patch.replace(model, "prepare_inputs_for_generation", prepare)
        processors = model._get_logits_processor

        @functools.wraps(processors)
        def with_own_passes(*args: Any, **kwargs: Any) -> Any:
            found = processors(*args, **kwargs)
            if self._session is not None:
                for processor in found:
                    if isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor):
                        processor.model = _Unconditional(self._session, processor)
            return found

        patch.replace(model, "_get_logits_processor", with_own_passes)

    def answer_all(
        self, reading: Callable[[], contextlib.AbstractContextManager[Any]], edited: Callable[[], bool]
    ) -> None:
        """Let the model's own `generate` be edited, whoever calls it; a bare forward says once that it is not.

        reading: within what it gives, no other thread runs the model. edited: whether there are edits to answer by.
        """
        original = self.model.generate

        @functools.wraps(original)
        def generate(inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
            with reading():
                if self._session is not None or self._aside:  # ours, or a part of one that goes on
                    return original(inputs, *args, **kwargs)
                prompt, mask = prompts_of(self.model, inputs, kwargs)
                read = ReadPrompts.of(self.method, self.model, prompt, mask)
                read.take_place(kwargs)
                with self.session(read.prompt, read.mask, read.decision):
                    return read.put_back(original(read.prompt, *args, **kwargs))

        self._patch.replace(self.model, "generate", generate)
        warned = False

        def warn(_module: Any, _args: tuple[Any, ...]) -> None:
            nonlocal warned
            if torch.compiler.is_compiling() or warned:
                return
            if self._session is not None or self._aside or self.context.active or not edited():
                return
            warned = True
            warn_user(
                "A forward of the edited model was not told where its prompts end, so it was the base model's: edits "
                "answer in generate(), or within EditedModel.teacher_forcing()."
            )

        self._patch.pre_hook(self.model, warn)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Within: the model is the base model, and nobody is warned of it."""
        before, self._aside = self._aside, True
        try:
            yield
        finally:
            self._aside = before

    @contextlib.contextmanager
    def session(self, prompt: Tensor, mask: Tensor | None, known: Decision | None = None) -> Iterator[Session]:
        """Within: the model's forwards belong to these prompts `[rows, length]`, padded where `mask` is 0.

        known: what was decided of them before, where the model reads others than were asked.
        """
        self._session = Session(self.method, self.context, prompt, mask, known)
        try:
            yield self._session
        finally:
            self._session = None
            self.context.stop()
            self.method.release()


class Session:
    """The prompts of one `generate` call and how they are routed."""

    def __init__(
        self,
        method: DecidingMethod,
        context: RoutingContext,
        prompt: Tensor,
        mask: Tensor | None,
        known: Decision | None = None,
    ) -> None:
        self.method = method
        self.context = context
        check_prompts(prompt, mask)
        if mask is not None and padded_on_the_right(mask):  # what follows a row would be read off its padding
            raise CorrigendaError(f"Prompts are padded on the right here, after which none is continued: {PAD_LEFT}.")
        self.prompt_mask = torch.ones_like(prompt, dtype=torch.bool) if mask is None else mask.bool()
        rows = [row[keep].tolist() for row, keep in zip(prompt.cpu(), self.prompt_mask.cpu())]
        self._known = method.decide(rows) if known is None else known
        self._plans = [None] * len(rows) if self._known is None else method.plans(rows, self._known)
        self._weight = fingerprint_weight(method, rows, self.prompt_mask)
        columns = torch.arange(prompt.shape[1], dtype=torch.int64, device=prompt.device)
        self._last = torch.where(self.prompt_mask, columns, -1).amax(1)
        self._lasts: list[int] = self._last.tolist()
        self._end = 0
        self._said: Tensor | None = None  # what beams had written before the last step
        self._started = False

    @property
    def decision(self) -> Decision:
        """What was decided for each row of the pass (a prompt's beams or samples are rows of their own)."""
        decision = self._known if self._known is not None else self.context.decision
        stopped = (self.context.stopped[1 : self.context.slots + 1] > 0).cpu()
        if bool(stopped.any()):
            warn_user(
                f"The values of an edit are no numbers, or too large: {int(stopped.sum())} answers are the base "
                "model's."
            )
        unsaid = self.unsaid()
        if bool(unsaid.any()):
            warn_user(
                f"{int(unsaid.sum())} answers are the base model's: what was written let no edit's answer begin, or "
                "went on otherwise."
            )
        left_out = stopped.view(len(decision.route), -1).any(1) | unsaid
        return decision._replace(route=torch.where(left_out.to(decision.route.device), -1, decision.route))

    def unsaid(self) -> Tensor:
        """bool `[prompts]`, on the CPU: those of whose answers, all of them, none is its edit's, by their tokens."""
        progress = self.context.progress
        found = torch.zeros(self.context.slots, dtype=torch.bool, device="cpu")
        if progress and self._started:
            at = {slot: max(self._end - 1, self._lasts[slot - 1]) for slot in range(1, self.context.slots + 1)}
            found[[slot - 1 for slot in progress.left(at)]] = True
        decision = self._known if self._known is not None else self.context.decision
        return found.view(len(decision.route), -1).all(1) if len(found) else found

    def describe(self, inputs: dict[str, Any], input_ids: Tensor, mask: Tensor | None) -> None:
        """Fill the context for the forward that gets `inputs`."""
        taken = inputs.get("input_ids")
        rows, length = (taken if taken is not None else inputs["inputs_embeds"]).shape[:2]
        cache = inputs.get("past_key_values")
        if mask is not None and mask.dim() == 2:
            past = mask.shape[1] - length
        else:  # `generate` drops a mask of ones, and gives a chunk of the prompt as if it were all
            past = input_ids.shape[1] - length if cache is None else int(cache.get_seq_length())
        end = past + length
        width = self.prompt_mask.shape[1]
        if self._known is None and past < width and (past > 0 or length < width):
            raise CorrigendaError(
                "This method routes by the features of the whole prompt, which must be in one forward: leave out "
                'prefill_chunk_size and past_key_values, or use a config with router="tokens".'
            )
        if not self._started:
            copies = rows // len(self.prompt_mask)
            self._last, self._weight, self.prompt_mask = (
                part.repeat_interleave(copies, 0) for part in (self._last, self._weight, self.prompt_mask)
            )
            unknown = torch.full((rows,), -1, dtype=torch.int32, device="cpu")
            routes = unknown if self._known is None else self.method.located(self._known.route)
            self.context.start(routes if self._known is None else routes.repeat_interleave(copies))
            self._lasts = [last for last in self._lasts for _ in range(copies)]
            self._follow(copies)
            self._started = True
        columns = torch.arange(past, end, dtype=torch.int64, device=self._last.device)
        gate = columns >= self._last[:, None]
        weight = torch.zeros(rows, length, dtype=torch.float32, device=gate.device)
        if past < width:
            seen = min(end, width)
            is_prompt = self.prompt_mask[:, past:seen]
            weight[:, : seen - past] = self._weight[:, past:seen]
            if self.method.config.scope == "full":
                gate[:, : seen - past] = is_prompt
            else:
                gate[:, : seen - past] &= is_prompt
        self.context.fill(gate, columns == self._last[:, None], weight, deciding=self._known is None and past == 0)
        self._advance(input_ids[:, -length:] if taken is None else taken, input_ids, past)
        self._end = end

    def _follow(self, copies: int) -> None:
        plans = [plan for plan in self._plans for _ in range(copies)]
        for slot, (plan, last) in enumerate(zip(plans, self._lasts), start=1):
            self.context.follow(slot, plan, last, lambda: self.method.prompts.vocabulary.kinds)

    def _advance(self, taken: Tensor, input_ids: Tensor, past: int) -> None:
        """Let the answers be followed over the tokens `[rows, length]` of a pass."""
        progress = self.context.progress
        if not progress:
            return
        rows, length = taken.shape
        slots, width = np.arange(1, rows + 1), self.prompt_mask.shape[1]
        if rows > len(self._plans) and past >= width:
            # A beam goes on from another one, which has written the same: its state is that one's.
            written = input_ids[:, width:past]
            if self._said is not None:
                known = self._said[:, : past - width]
                same = (written[:, None] == known[None]).all(2) if known.shape[1] == written.shape[1] else None
                if same is not None:
                    group = torch.arange(rows, dtype=torch.int64, device=same.device) // (rows // len(self._plans))
                    same &= group[:, None] == group
                    source = (same.int().argmax(1) + 1).to(self.context.device)
                    progress.reorder(torch.from_numpy(slots).to(self.context.device), source)
            self._said = input_ids[:, width:]
        self.context.advance(taken.reshape(-1), slots, np.full(rows, past), np.full(rows, length))


class _Unconditional:
    """The model as guidance runs it beside each step: on prompts of its own, whose description comes and goes.

    Negative prompts are decided as any prompt is. Without them the pass begins with the last token of the prompt,
    which asks nothing, and is the base model's.
    """

    def __init__(self, session: Session, processor: UnbatchedClassifierFreeGuidanceLogitsProcessor) -> None:
        self._beside = session
        self._model = processor.model
        self._asked = processor.unconditional_context["input_ids"] is not None
        self._own: Session | None = None
        self._routes: Tensor | None = None
        self._progress: AnswerProgress | None = None

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> Any:
        context, method = self._beside.context, self._beside.method
        routes, decision = context.routes.clone(), getattr(context, "decision", None)
        progress, context.progress = context.progress, None
        if self._asked:
            inputs = {"input_ids": input_ids, "past_key_values": kwargs.get("past_key_values")}
            if self._own is None:
                self._own = Session(method, context, input_ids, attention_mask)
            else:
                context.start(self._routes)
                context.progress = self._progress
            self._own.describe(inputs, input_ids, attention_mask)
        else:
            context.stop()
        try:
            return self._model(input_ids, attention_mask=attention_mask, **kwargs)
        finally:
            self._routes, self._progress = context.routes.clone(), context.progress
            context.progress = None  # of what follows, not to be begun anew
            context.start(routes)
            context.progress, context.decision = progress, decision


def prompts_of(model: CausalModel, inputs: Tensor | None, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The prompts `[rows, length]` of a `generate` call, taken out of `kwargs`, and their mask, put into it.

    Without a mask it is what transformers would infer, fixed here so that routing and the model see the same padding.
    """
    prompt = inputs if inputs is not None else kwargs.pop("input_ids", None)
    if prompt is None:
        raise CorrigendaError("generate needs the prompts' token ids (`input_ids`), by which edits are found.")
    if kwargs.get("attention_mask") is None:
        pad, ends = model.generation_config.pad_token_id, model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        kwargs["attention_mask"] = torch.ones_like(prompt) if pad is None or pad in ends else (prompt != pad).long()
    check_prompts(prompt, kwargs["attention_mask"])
    return prompt, kwargs["attention_mask"]


def check_prompts(prompt: Tensor, mask: Tensor | None) -> None:
    """Raise where prompts are not ids `[rows, length]` of at least one row and column, or the mask is not theirs."""
    if prompt.dim() != 2 or 0 in prompt.shape:
        raise CorrigendaError(
            "generate needs prompts of at least one token, as token ids of the shape [rows, length], not "
            f"{list(prompt.shape)}."
        )
    if mask is not None and mask.shape != prompt.shape:
        raise CorrigendaError(
            f"The attention mask of generate must have the shape of the prompts, {list(prompt.shape)}, not "
            f"{list(mask.shape)}."
        )


def fingerprint_weight(method: DecidingMethod, rows: list[list[int]], mask: Tensor) -> Tensor:
    """fp32 `[rows, length]`: 1 on the prompt tokens that count for a fingerprint."""
    weight = mask.float()
    for i, row in enumerate(rows):
        start, end = method.prompts.user_tokens(row)
        if (start, end) != (0, len(row)):
            places = mask[i].nonzero()[:, 0]
            weight[i, places[:start]] = 0
            weight[i, places[end:]] = 0
    return weight
