"""The answering side of an edited model: generation, answers to prompts and teacher-forced passes, by its edits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..backbone.greedy import greedy
from ..backbone.modes import own_modes
from ..edits.answer_start import UNSAID
from ..edits.edit import Edit, kind_of
from ..edits.prompts import PromptFormat
from ..edits.template import Template
from ..edits.tokenizer import Tokenizer
from ..errors import CorrigendaError
from ..methods.method import Method
from ..routers.router import Decision, part_of
from .answering import answered
from .answers import Answer, Provenance, provenance_of
from .generation import GenerateProvider, Session, prompts_of
from .read_prompts import ReadPrompts
from .teacher_forcing import forced
from .versions import Versions


class EditReader:
    """Runs a model whose layers read edits, each call by one version of them; `EditedModel` says what each call means.

    check_read  raises where no layer reads the edits any more
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        method: Method,
        versions: Versions,
        provider: GenerateProvider,
        check_read: Callable[[], None],
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._method = method
        self._prompts = method.prompts
        self._decoder = method.decoder
        self._versions = versions
        self._provider = provider
        self._context = provider.context
        self._check_read = check_read

    @contextlib.contextmanager
    def reading(self, **modes: bool) -> Iterator[Sequence[Edit]]:
        """Within: this thread alone runs the model, by one version of the edits; gives those by their places."""
        with self._versions.reading() as edits, own_modes(self._model, **modes):
            self._check_read()
            yield edits

    def generate(self, inputs: Tensor | None, provenance: bool, kwargs: dict[str, Any]) -> Any:
        """See `EditedModel.generate`; `kwargs` are those of the model's own."""
        prompt, mask = prompts_of(self._decoder.model, inputs, kwargs)
        with self.reading(autocast=True) as edits:
            read = ReadPrompts.of(self._method, self._decoder.model, prompt, mask)
            read.take_place(kwargs)
            with self._provider.session(read.prompt, read.mask, read.decision) as session:
                output = read.put_back(self._model.generate(read.prompt, **kwargs))
                return (output, self._provenance(session, edits)) if provenance else output

    def _provenance(self, session: Session, edits: Sequence[Edit]) -> list[Provenance]:
        found = provenance_of(session.decision, self._method, edits)
        for row in session.unsaid().nonzero()[:, 0].tolist():
            found[row] = replace(found[row], reason=UNSAID)
        return found

    def encoded(self, prompts: Sequence[str], template: Template | None) -> list[list[int]]:
        """Token ids of prompts, put in the edits' own format, or by another `template`."""
        if isinstance(prompts, str) or not isinstance(prompts, Iterable):  # a text would be answered letter by letter
            raise CorrigendaError(f"The prompts must be a list of texts, not {kind_of(prompts)}.")
        prompts = list(prompts)
        for number, prompt in enumerate(prompts, start=1):
            if not isinstance(prompt, str):
                raise CorrigendaError(f"Prompt {number} must be text, not {kind_of(prompt)}.")
        form = self._prompts if template is None else PromptFormat(self._tokenizer, template, self._prompts.chat)
        return [form.encode(form.wrap(prompt)) for prompt in prompts]

    def answer_ids(self, rows: Sequence[Sequence[int]], max_new_tokens: Sequence[int], batch_size: int) -> list[Answer]:
        """See `EditedModel.answer_ids`."""
        for number, row in enumerate(rows, start=1):
            if not len(row):
                raise CorrigendaError(f"Prompt {number} has no tokens, after which nothing can follow: ask something.")
        with self.reading() as edits:
            read, known = self.read_as(rows)
            self._decoder.check_lengths(read, max_new_tokens)

            def generate(
                ids: Tensor, mask: Tensor, longest: int, part: Sequence[int]
            ) -> tuple[Tensor, list[Provenance]]:
                with (
                    self._provider.session(ids, mask, part_of(known, part)) as session,
                    greedy(self._decoder.model, self._tokenizer, longest) as settings,
                ):
                    output = self._model.generate(ids, attention_mask=mask, generation_config=settings)
                    return output, self._provenance(session, edits)

            device = self._model.get_input_embeddings().weight.device
            return answered(read, max_new_tokens, batch_size, self._tokenizer, device, generate)

    def read_as(self, rows: Sequence[Sequence[int]]) -> tuple[list[list[int]], Decision | None]:
        """See `EditedModel.read_as`."""
        known = self._method.decide(rows) if self._method.reads_text and len(rows) else None
        return ([list(row) for row in rows] if known is None else self._method.read_as(rows, known)), known

    @contextlib.contextmanager
    def teacher_forcing(
        self, ids: Tensor, prompts: Sequence[int], lengths: Sequence[int], edited: bool, known: Decision | None
    ) -> Iterator[Callable[[], list[int]]]:
        """See `EditedModel.teacher_forcing`."""
        with self.reading(gradients=torch.is_grad_enabled()):
            if not edited:
                yield lambda: [-1] * len(prompts)
                return
            with forced(self._method, self._context, ids, prompts, lengths, known) as routes:
                yield routes

    def sources(self, rows: int) -> list[Provenance]:
        """See `EditedModel.sources`."""
        decision = Decision(*(part[:rows] for part in self._context.decision))
        return provenance_of(decision, self._method, self._versions.edits)
