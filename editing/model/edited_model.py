"""The edited model: a frozen causal language model, one patched layer, and the edits written beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backbone.decoder import Decoder
from ..backbone.frozen import length_groups
from ..backbone.greedy import greedy
from ..backbone.loading import load_base
from ..backbone.modes import check_tensors, own_modes
from ..backbone.patch import Patch
from ..backbone.wrappers import unwrapped
from ..edits.edit import Edit, kind_of
from ..edits.prompts import PromptFormat
from ..edits.template import Template
from ..errors import CorrigendaError
from ..methods.associative.config import AssociativeConfig
from ..methods.config import EditingConfig
from ..methods.registry import method_class, resolved
from ..routers.context import RoutingContext
from ..routers.router import Decision
from ..scores.evaluate import Evaluator, Scores
from . import saving
from .answers import Answer, Progress, Provenance, laid_out, provenance_of
from .generation import GenerateProvider, Session, fingerprint_weight, prompts_of
from .layer import EditedOutput
from .stored import StoredEdits

__all__ = ["Answer", "EditedModel", "Progress", "Provenance"]


class EditedModel(StoredEdits):
    """A model that takes corrections in a stream, answers by them in other words too, and can be restored bit for bit.

    Prompts that no edit is about get the base model's output, bit for bit. The model itself is patched in place, on
    this instance alone; `detach` takes the patch off. It may be one in PEFT's or `torch.compile`'s wrapper, whose
    adapters belong to the base model; `generate` of the wrapper, as the model's own, answers by the edits.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        config: EditingConfig | None = None,
        *,
        template: str | Template | None = None,
        chat_template: bool = False,
        name: str | None = None,
    ) -> None:
        if getattr(unwrapped(model), "_corrigenda", None) is not None:
            raise CorrigendaError("This model already carries edits: detach them before wrapping it again.")
        check_tensors(model)
        with own_modes(model):
            self.model = model
            self.tokenizer = tokenizer
            self.decoder = Decoder(model)
            self.config = resolved(config or AssociativeConfig(), self.decoder)
            self.prompts = PromptFormat(tokenizer, template, chat_template)
            self.method = method_class(self.config.method)(self.decoder, self.prompts, self.config)
            self.name = name
            self.context = RoutingContext(self.decoder.device(self.config.layer))
            output = EditedOutput(self.method.memory, self.context)
            self._begin(output)
            self._patch = Patch()
            self._patch.hook(self.decoder.down_proj(self.config.layer), output)
            self.method.tap(self._patch, self.context)
            self._provider = GenerateProvider(self.decoder.model, self.method, self.context, self._patch)
            self._provider.answer_all(lambda: self._reading(autocast=True), lambda: bool(self._versions.current))
            self._patch.replace(self.decoder.model, "_corrigenda", self)

    @classmethod
    def wrap(cls, model: Any, tokenizer: Any, config: EditingConfig | None = None, **options: Any) -> EditedModel:
        """Make a loaded model editable; `options` are `template`, `chat_template` and `name`."""
        return cls(model, tokenizer, config, **options)

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path | Any,
        edits: str | Path | None = None,
        *,
        config: EditingConfig | None = None,
        tokenizer: Any = None,
        template: str | Template | None = None,
        chat_template: bool = False,
        device: str | None = None,
        dtype: str | torch.dtype | None = None,
        **kwargs: Any,
    ) -> EditedModel:
        """A base model ("smollm2", GGUF file, folder, hub id; or a loaded one, with `tokenizer`) and any saved edits.

        Saved edits bring their own configuration and template; `config`, `template` and `chat_template` are for new
        ones. Raises CorrigendaError where the saved edits are not for this model, or are damaged.
        """
        if tokenizer is None and not isinstance(base, (str, Path)):
            raise CorrigendaError("A loaded model comes without its tokenizer: give it as `tokenizer`.")
        saved = None if edits is None else saving.read(edits)
        if saved is not None and config is not None:
            raise CorrigendaError("Saved edits bring their own configuration: leave out `config`.")
        model, name = base, None
        if isinstance(base, (str, Path)):
            model, tokenizer = load_base(base, device=device, dtype=dtype, **kwargs)
            name = str(base)
        if saved is None:
            return cls(model, tokenizer, config, template=template, chat_template=chat_template, name=name)
        edited = None
        try:
            saving.check_base(saved, Decoder(model), tokenizer)
            edited = cls(
                model,
                tokenizer,
                saved.config,
                template=saved.prompts["template"],
                chat_template=saved.prompts["chat"],
                name=name,
            )
            edited._attach(saved.store)
        except BaseException:
            saved.close()
            if edited is not None:
                edited.detach()
            raise
        return edited

    def generate(self, inputs: Tensor | None = None, *, provenance: bool = False, **kwargs: Any) -> Any:
        """As transformers' `generate`, with every sequence answered by the edit that its prompt is about, if any.

        provenance: give back a pair, the output and a `Provenance` for every row of the pass.
        """
        prompt, mask = prompts_of(self.decoder.model, inputs, kwargs)
        with self._reading(autocast=True) as edits, self._provider.session(prompt, mask) as session:
            output = self.model.generate(prompt, **kwargs)
            return (output, self._provenance(session, edits)) if provenance else output

    def _provenance(self, session: Session, edits: Sequence[Edit]) -> list[Provenance]:
        found = provenance_of(session.decision, self.method, edits)
        for row in session.unsaid().nonzero()[:, 0].tolist():
            found[row] = replace(found[row], reason="let no answer of the edit's begin, or went on otherwise")
        return found

    def answer(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 32,
        batch_size: int = 16,
        template: Template | None = None,
    ) -> list[Answer]:
        """Greedy continuations of prompts, put in the edits' own format, with the edit applied to each.

        template: wraps these prompts instead of the edits' own.
        """
        if isinstance(prompts, str) or not isinstance(prompts, Iterable):  # a text would be answered letter by letter
            raise CorrigendaError(f"The prompts must be a list of texts, not {kind_of(prompts)}.")
        prompts = list(prompts)
        for number, prompt in enumerate(prompts, start=1):
            if not isinstance(prompt, str):
                raise CorrigendaError(f"Prompt {number} must be text, not {kind_of(prompt)}.")
        form = self.prompts if template is None else PromptFormat(self.tokenizer, template, self.prompts.chat)
        rows = [form.encode(form.wrap(prompt)) for prompt in prompts]
        return self.answer_ids(rows, [max_new_tokens] * len(rows), batch_size)

    def answer_ids(
        self, rows: Sequence[Sequence[int]], max_new_tokens: Sequence[int], batch_size: int = 16
    ) -> list[Answer]:
        """The same for tokenised prompts, each with its own limit."""
        self._check_lengths(rows, max_new_tokens)
        answers: list[Answer | None] = [None] * len(rows)
        with self._reading() as edits:
            self._answer_into(answers, rows, max_new_tokens, batch_size, edits)
        return answers

    def _answer_into(
        self,
        answers: list[Answer | None],
        rows: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int],
        batch_size: int,
        edits: Sequence[Edit],
    ) -> None:
        device = self.model.get_input_embeddings().weight.device
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        longest = max(map(len, rows), default=1)
        for group in length_groups([len(row) for row in rows], batch_size * longest):
            for part in (group[i : i + batch_size] for i in range(0, len(group), batch_size)):
                width = max(len(rows[i]) for i in part)
                ids = torch.tensor(
                    [[pad] * (width - len(rows[i])) + list(rows[i]) for i in part], dtype=torch.int64, device="cpu"
                )
                mask = torch.tensor(
                    [[0] * (width - len(rows[i])) + [1] * len(rows[i]) for i in part], dtype=torch.int64, device="cpu"
                )
                ids, mask = ids.to(device), mask.to(device)
                most = max(max_new_tokens[i] for i in part)
                with (
                    self._provider.session(ids, mask) as session,
                    greedy(self.decoder.model, self.tokenizer, most) as settings,
                ):
                    output = self.model.generate(ids, attention_mask=mask, generation_config=settings)
                    found = self._provenance(session, edits)
                for i, new, source in zip(part, output[:, width:].tolist(), found):
                    text = self.tokenizer.decode(new[: max_new_tokens[i]], skip_special_tokens=True)
                    answers[i] = Answer(laid_out(text, source.edit), source.edit, source.score, source)

    def generate_text(self, prompts: Sequence[str], max_new_tokens: int = 32) -> list[str]:
        """Greedy continuations of prompts, each in the edits' own format; the prompts are not repeated."""
        return [answer.text for answer in self.answer(prompts, max_new_tokens)]

    @contextlib.contextmanager
    def teacher_forcing(
        self, ids: Tensor, prompts: Sequence[int], lengths: Sequence[int], edited: bool = True
    ) -> Iterator[Callable[[], list[int]]]:
        """Within: one forward over right-padded `ids` `[rows, length]`, row i routed by its first `prompts[i]` tokens.

        Yields a function that tells the edit applied to each row, or -1, once the forward has run.
        """
        with self._reading(gradients=torch.is_grad_enabled()):
            if edited:
                yield from self._routed(ids, prompts, lengths)
            else:
                yield lambda: [-1] * len(prompts)

    def _routed(self, ids: Tensor, prompts: Sequence[int], lengths: Sequence[int]) -> Iterator[Callable[[], list[int]]]:
        rows = [row[:count] for row, count in zip(ids.tolist(), prompts)]
        known = self.method.decide(rows)
        columns = torch.arange(ids.shape[1], dtype=torch.int64, device=ids.device)
        last = torch.tensor(prompts, dtype=torch.int64, device=ids.device)[:, None] - 1
        real = columns < torch.tensor(lengths, dtype=torch.int64, device=ids.device)[:, None]
        gate = real if self.config.scope == "full" else real & (columns >= last)
        weight = fingerprint_weight(self.method, rows, columns <= last)
        self.context.start(
            torch.full((len(rows),), -1, dtype=torch.int32, device="cpu") if known is None else known.route
        )
        self.context.fill(gate, columns == last, weight, deciding=known is None)
        if known is not None:
            self.context.decision = known
            for slot, (plan, count) in enumerate(zip(self.method.plans(rows, known), prompts), start=1):
                self.context.follow(slot, plan, count - 1, lambda: self.prompts.vocabulary.kinds)
            slots = np.arange(1, len(rows) + 1)
            self.context.advance(ids.reshape(-1), slots, np.zeros_like(slots), np.full_like(slots, ids.shape[1]))
            self.context.gate[: gate.numel()] &= real.reshape(-1).to(self.context.device)
        try:
            yield lambda: self.context.routes.tolist()
        finally:
            self.context.stop()

    def sources(self, rows: int) -> list[Provenance]:
        """Which edit was applied to each row of the teacher-forced pass that ran last."""
        decision = Decision(*(part[:rows] for part in self.context.decision))
        return provenance_of(decision, self.method, self.edits)

    def evaluate(self, edits: Iterable[Edit] | None = None, **options: Any) -> Scores:
        """Teacher-forced and free-generation scores of edits, by default of all that were written (see `Evaluator`)."""
        return Evaluator(self, **options).score(self.edits if edits is None else edits)

    @contextlib.contextmanager
    def _reading(self, **modes: bool) -> Iterator[Sequence[Edit]]:
        """Within: this thread alone runs the model, by one version of the edits; gives those by their places."""
        with self._versions.reading() as edits, own_modes(self.model, **modes):
            self._check_read()
            yield edits

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "model" not in vars(self) or not hasattr(self.model, name):
            raise AttributeError(f"'EditedModel' object has no attribute '{name}'")
        raise AttributeError(
            f"EditedModel has no {name}: the transformers model, edited too, is its attribute `model`; give that "
            "to a pipeline or to another library."
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise CorrigendaError(
            "An edited model is not copied or pickled whole: save its edits by save_pretrained, and load them with "
            "from_pretrained beside a copy of its attribute `model`, which is the base model's."
        )

    def detach(self) -> Any:
        """Take the patch off and give back the base model, its module and bits as they were."""
        self._check_attached()
        self._patch.remove()
        self.close()
        return self.model

    def _check_lengths(self, rows: Sequence[Sequence[int]], new: Sequence[int]) -> None:
        limit = getattr(self.decoder.model.config, "max_position_embeddings", None)
        for number, (row, more) in enumerate(zip(rows, new), start=1):
            if limit is not None and len(row) + more > limit:
                raise CorrigendaError(
                    f"Prompt {number} has {len(row)} tokens; with {more} new ones it exceeds the model's context of "
                    f"{limit}: shorten it, or ask for fewer."
                )
