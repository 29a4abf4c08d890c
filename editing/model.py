"""The edited model: a frozen causal language model, one patched layer, and the edits written beside it."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import saving
from .base import load_base
from .config import AssociativeConfig, EditingConfig
from .context import RoutingContext
from .decoder import Decoder, check_decoder
from .defaults import resolved
from .edits import Edit
from .errors import CorrigendaError
from .evaluate import Evaluator, Scores
from .frozen import length_groups
from .generation import GenerateProvider, fingerprint_weight
from .layer import EditedLinear
from .methods import METHODS, Written
from .prompts import PromptFormat
from .template import Template


@dataclass(frozen=True)
class Answer:
    """A generated continuation, and the stored edit that was applied to it, if any.

    corrected: whether any was; `edit` is None too where it came from a memory that edits share (WISE).
    """

    text: str
    edit: Edit | None
    score: float
    corrected: bool = False


@dataclass(frozen=True)
class Progress:
    """Where a stream of edits stands: how many are written, in how many seconds, and the last batch's outcome."""

    done: int
    seconds: float
    edits: Sequence[Edit]
    written: Sequence[Written]

    @property
    def loss(self) -> float:
        return sum(result.loss for result in self.written) / len(self.written)


class EditedModel:
    """A model that takes corrections in a stream, answers by them in other words too, and can be restored bit for bit.

    Prompts that no edit is about get the base model's output, bit for bit. The model itself is patched in place, on
    this instance alone; `detach` takes the patch off.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        config: EditingConfig | None = None,
        *,
        template: str | Template | None = None,
        chat_template: bool = False,
    ) -> None:
        if isinstance(getattr(model, "_corrigenda", None), EditedModel):
            raise CorrigendaError("This model already carries edits: detach them before wrapping it again.")
        self.model = model
        self.tokenizer = tokenizer
        self.decoder = Decoder(model)
        self.config = resolved(config or AssociativeConfig(), self.decoder)
        self.prompts = PromptFormat(tokenizer, template, chat_template)
        self.method = METHODS[self.config.method](self.decoder, self.prompts, self.config)
        self.edits: list[Edit] = []
        self._ids: set[str | None] = set()
        self.context = RoutingContext(self.decoder.device(self.config.layer))
        self._base = self.decoder.down_proj(self.config.layer)
        self.decoder.layers[self.config.layer].mlp.down_proj = EditedLinear(
            self._base, self.method.memory, self.context
        )
        self._tap = self.method.tap(self.context)
        self._provider = GenerateProvider(model, self.method, self.context)
        self._checked = False
        model._corrigenda = self

    @classmethod
    def wrap(cls, model: Any, tokenizer: Any, config: EditingConfig | None = None, **options: Any) -> EditedModel:
        """Make a loaded model editable; `options` are `template` and `chat_template`."""
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
        saved = None if edits is None else saving.read(edits)
        if saved is not None and config is not None:
            raise CorrigendaError("Saved edits bring their own configuration: leave out `config`.")
        if not isinstance(base, (str, Path)):
            model = base
        else:
            model, tokenizer = load_base(base, device=device, dtype=dtype, **kwargs)
        if saved is None:
            return cls(model, tokenizer, config, template=template, chat_template=chat_template)
        saving.check_base(saved, Decoder(model), tokenizer)
        edited = cls(
            model,
            tokenizer,
            saved.config,
            template=saved.prompts["template"],
            chat_template=saved.prompts["chat"],
        )
        try:
            saving.restore(edited, saved)
        except BaseException:
            edited.detach()
            raise
        return edited

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the edits (not the base model) into a new or empty folder: JSON, JSON Lines and safetensors."""
        saving.write(self, directory)

    def edit(
        self,
        edits: Edit | Iterable[Edit],
        *,
        on_progress: Callable[[Progress], None] | None = None,
        score_each: Evaluator | None = None,
    ) -> list[Written]:
        """Write edits in batches of `config.batch_size`, in order; each batch is answered by from then on.

        score_each: an evaluator that scores every batch right after it was written. An edit that cannot be taken
        stops the stream with its batch not written; what was written before stays.
        """
        stream = [edits] if isinstance(edits, Edit) else edits
        if not self._checked:
            check_decoder(self.decoder, self.config.layer)
            self._checked = True
        results: list[Written] = []
        seconds = 0.0
        for batch in _batches(stream, self.config.batch_size):
            start = time.perf_counter()
            batch = self._named(batch)
            with self._frozen():
                written = self.method.write(batch)
            self.edits.extend(batch)
            self._ids.update(edit.id for edit in batch)
            results += written
            seconds += time.perf_counter() - start
            if on_progress is not None:
                on_progress(Progress(len(results), seconds, batch, written))
            if score_each is not None:
                score_each.score_batch(batch)
        return results

    @contextlib.contextmanager
    def _frozen(self) -> Iterator[None]:
        """Within: no gradient by the model's own weights."""
        needed = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in needed:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in needed:
                parameter.requires_grad_(True)

    def _named(self, batch: Sequence[Edit]) -> list[Edit]:
        """The batch with an id for every edit; raises where one is taken."""
        new: set[str | None] = set()
        named = []
        for number, edit in enumerate(batch, start=len(self.edits)):
            if edit.id is None:
                ids = (f"edit-{n:05d}" for n in itertools.count(number))
                edit = replace(edit, id=next(name for name in ids if name not in self._ids and name not in new))
            elif edit.id in self._ids or edit.id in new:
                raise CorrigendaError(f'An edit with the id "{edit.id}" is already written; ids must be unique.')
            new.add(edit.id)
            named.append(edit)
        return named

    def remove(self, ids: str | Iterable[str]) -> None:
        """Take edits out by their ids: what they answered is the base model's again, all else keeps its bits."""
        wanted = {ids} if isinstance(ids, str) else set(ids)
        places = {edit.id: place for place, edit in enumerate(self.edits)}
        for name in sorted(wanted):
            if name not in places:
                raise CorrigendaError(f'There is no edit with the id "{name}" to remove.')
        self.method.remove({places[name] for name in wanted})
        self.edits = [edit for edit in self.edits if edit.id not in wanted]
        self._ids -= wanted

    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """As transformers' `generate`, with every sequence answered by the edit that its prompt is about, if any."""
        prompt = inputs if inputs is not None else kwargs.pop("input_ids", None)
        if prompt is None:
            raise CorrigendaError("generate needs the prompts' token ids (`input_ids`), by which edits are found.")
        mask = kwargs.get("attention_mask")
        if mask is None:
            # What transformers would infer, fixed here so that routing and the model see the same padding.
            pad, ends = self.model.generation_config.pad_token_id, self.model.generation_config.eos_token_id
            ends = ends if isinstance(ends, list) else [ends]
            mask = torch.ones_like(prompt) if pad is None or pad in ends else (prompt != pad).long()
            kwargs["attention_mask"] = mask
        with self._provider.session(prompt, mask):
            return self.model.generate(prompt, **kwargs)

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
        form = self.prompts if template is None else PromptFormat(self.tokenizer, template, self.prompts.chat)
        rows = [form.encode(form.wrap(prompt)) for prompt in prompts]
        return self.answer_ids(rows, [max_new_tokens] * len(rows), batch_size)

    @torch.no_grad()
    def answer_ids(
        self, rows: Sequence[Sequence[int]], max_new_tokens: Sequence[int], batch_size: int = 16
    ) -> list[Answer]:
        """The same for tokenised prompts, each with its own limit."""
        self._check_lengths(rows, max_new_tokens)
        device = self.model.get_input_embeddings().weight.device
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        answers: list[Answer | None] = [None] * len(rows)
        longest = max(map(len, rows), default=1)
        for group in length_groups([len(row) for row in rows], batch_size * longest):
            for part in (group[i : i + batch_size] for i in range(0, len(group), batch_size)):
                width = max(len(rows[i]) for i in part)
                ids = torch.tensor([[pad] * (width - len(rows[i])) + list(rows[i]) for i in part])
                mask = torch.tensor([[0] * (width - len(rows[i])) + [1] * len(rows[i]) for i in part])
                with self._provider.session(ids.to(device), mask.to(device)) as session:
                    output = self.model.generate(
                        ids.to(device),
                        attention_mask=mask.to(device),
                        max_new_tokens=max(max_new_tokens[i] for i in part),
                        do_sample=False,
                        num_beams=1,
                        temperature=None,
                        top_p=None,
                        top_k=None,
                        pad_token_id=pad,
                    )
                    decision = session.decision
                for i, new, route, score in zip(
                    part, output[:, width:].tolist(), decision.route.tolist(), decision.score.tolist()
                ):
                    text = self.tokenizer.decode(new[: max_new_tokens[i]], skip_special_tokens=True)
                    edit = self.method.edit_of(route)
                    answers[i] = Answer(text.strip(), None if edit is None else self.edits[edit], score, route >= 0)
        return answers

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
        if not edited:
            yield lambda: [-1] * len(prompts)
            return
        rows = [row[:count] for row, count in zip(ids.tolist(), prompts)]
        known = self.method.decide(rows)
        columns = torch.arange(ids.shape[1], device=ids.device)
        last = torch.tensor(prompts, device=ids.device)[:, None] - 1
        real = columns < torch.tensor(lengths, device=ids.device)[:, None]
        gate = real if self.config.scope == "full" else real & (columns >= last)
        weight = fingerprint_weight(self.method, rows, columns <= last)
        self.context.start(torch.full((len(rows),), -1) if known is None else known.route)
        self.context.fill(gate, columns == last, weight, deciding=known is None)
        try:
            yield lambda: self.context.route[: len(rows)].tolist()
        finally:
            self.context.stop()

    def evaluate(self, edits: Iterable[Edit] | None = None, **options: Any) -> Scores:
        """Teacher-forced and free-generation scores of edits, by default of all that were written (see `Evaluator`)."""
        return Evaluator(self, **options).score(self.edits if edits is None else edits)

    def detach(self) -> Any:
        """Take the patch off and give back the base model, its module and bits as they were."""
        self.decoder.layers[self.config.layer].mlp.down_proj = self._base
        if self._tap is not None:
            self._tap.remove()
        self._provider.remove()
        del self.model._corrigenda
        return self.model

    def _check_lengths(self, rows: Sequence[Sequence[int]], new: Sequence[int]) -> None:
        limit = getattr(self.model.config, "max_position_embeddings", None)
        for number, (row, more) in enumerate(zip(rows, new), start=1):
            if limit is not None and len(row) + more > limit:
                raise CorrigendaError(
                    f"Prompt {number} has {len(row)} tokens; with {more} new ones it exceeds the model's context of "
                    f"{limit}: shorten it."
                )


def _batches(edits: Iterable[Edit], size: int) -> Iterable[list[Edit]]:
    batch: list[Edit] = []
    for edit in edits:
        if not isinstance(edit, Edit):
            raise CorrigendaError(f"edit takes Edit records, not {type(edit).__name__}.")
        batch.append(edit)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
