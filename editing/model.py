"""The edited model: a frozen causal language model, one patched layer, and the edits written beside it."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import saving
from .answers import Answer, Progress, Provenance, provenance_of
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
from .resume import Recorded
from .routing import Decision
from .store.ledger import New
from .store.store import Change, EditStore, OnConflict, is_store
from .template import Template
from .versions import Version, Versions
from .view import MemoryView

__all__ = ["Answer", "EditedModel", "Progress", "Provenance"]


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
        name: str | None = None,
    ) -> None:
        if isinstance(getattr(model, "_corrigenda", None), EditedModel):
            raise CorrigendaError("This model already carries edits: detach them before wrapping it again.")
        self.model = model
        self.tokenizer = tokenizer
        self.decoder = Decoder(model)
        self.config = resolved(config or AssociativeConfig(), self.decoder)
        self.prompts = PromptFormat(tokenizer, template, chat_template)
        self.method = METHODS[self.config.method](self.decoder, self.prompts, self.config)
        self.name = name
        self.context = RoutingContext(self.decoder.device(self.config.layer))
        self._base = self.decoder.down_proj(self.config.layer)
        layer = EditedLinear(self._base, self.method.memory, self.context)
        self.decoder.layers[self.config.layer].mlp.down_proj = layer
        self._tap = self.method.tap(self.context)
        self._provider = GenerateProvider(model, self.method, self.context)
        self._versions = Versions(self.method, layer)
        self._view = MemoryView(self.method, self._new_store)
        self._directory: Path | None = None
        self._checked = False
        model._corrigenda = self

    @property
    def edits(self) -> list[Edit]:
        """The edits that are in the memory, by their places; in a pinned version, those of that version."""
        return self._versions.edits

    @property
    def store(self) -> EditStore | None:
        """The store that the memory is a view of; None before the first edit."""
        return self._view.store

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

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the edits with their history (not the base model) into a new or empty folder: one SQLite ledger."""
        with self._versions.lock:
            if self.store is None:
                EditStore.create(directory, saving.header_of(self), saving.sample_of(self)).close()
            else:
                self.store.copy(directory).close()

    def attach(self, directory: str | Path) -> None:
        """From now on, write edits into this folder's store as they come; a batch is on the disk when it is written.

        A new or empty folder takes the edits that are there; the folder these edits were loaded from is written on.
        """
        path = Path(directory).absolute()
        with self._versions.lock:
            store = self.store
            if store is not None and store.directory is not None and store.directory.absolute() == path:
                if not store.ledger.writable:
                    self._attach(saving.read(path, write=True).store)
                    store.close()
            elif is_store(path):
                raise CorrigendaError(
                    f"{directory} already holds edits: load them with from_pretrained(..., edits=...) to write on."
                )
            elif store is not None:
                self._view.store = store.copy(path)
                store.close()
            else:
                saving.refuse_non_empty(path)
                self._directory = path

    def refresh(self) -> bool:
        """Take in what another process has written into the store; whether there was anything."""
        with self._versions.lock:
            if self.store is None or not self.store.refresh():
                return False
            if self._view.ungrounded:
                self._attach(self.store)
            self._synchronise()
            return True

    def _attach(self, store: EditStore) -> None:
        with torch.no_grad():
            self._view.attach(store)
        self._versions.edits = self._view.edits()

    def _synchronise(self) -> None:
        """Make the memory what the store says it is."""
        with torch.no_grad():
            self._view.become(self._view.history.applied())
        self._versions.edits = self._view.edits()

    def _new_store(self) -> EditStore:
        header, sample = saving.header_of(self), saving.sample_of(self)
        if self._directory is None:
            return EditStore.temporary(header, sample)
        return EditStore.create(self._directory, header, sample)

    def _writable(self) -> None:
        """Loaded edits belong to their folder: without `attach`, what comes now goes into a copy."""
        store = self.store
        if store is not None and not store.ledger.writable:
            self._view.store = store.copy(None)
            store.close()

    def edit(
        self,
        edits: Edit | Iterable[Edit],
        *,
        store: str | Path | None = None,
        resume: bool = False,
        on_conflict: OnConflict = "supersede",
        author: str | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        score_each: Evaluator | None = None,
    ) -> list[Written]:
        """Write edits in batches of `config.batch_size`, in order; each batch is answered by from then on.

        store: a folder to write them into as they come (see `attach`). resume: skip edits of the stream that are
        recorded there already. on_conflict: what to do where a stored edit is about the same fact, "supersede" it or
        "keep" it; or a function of both edits that says which. score_each: an evaluator that scores every batch right
        after it was written. An edit that cannot be taken stops the stream with its batch not written; what was written
        before stays.
        """
        stream: Iterable[Edit] = [edits] if isinstance(edits, Edit) else edits
        if store is not None:
            self.attach(store)
        if not self._checked:
            check_decoder(self.decoder, self.config.layer)
            self._checked = True
        recorded = Recorded(self._view.history if resume else None)
        results: list[Written] = []
        seconds = 0.0
        for batch in _batches(recorded.skip(stream), self.config.batch_size):
            start = time.perf_counter()
            with self._versions.lock, self._frozen():
                self._writable()
                outcome = self._view.write(self._named(batch), on_conflict=on_conflict, author=author)
                self._versions.edits = self._view.edits()
            results += outcome.written
            recorded.passed += len(batch)
            seconds += time.perf_counter() - start
            if on_progress is not None:
                passed, declined = recorded.passed, outcome.declined
                on_progress(Progress(len(results), seconds, outcome.edits, outcome.written, passed, declined))
            if score_each is not None and outcome.edits:
                score_each.score_batch(outcome.edits)
                self._record_scores(outcome.edits, score_each.by_edit)
        return results

    def _record_scores(self, edits: Sequence[Edit], scores: Sequence[dict[str, float]]) -> None:
        with self._versions.lock:
            found = {str(self._view.history.find(edit.id).seq): of_edit for edit, of_edit in zip(edits, scores)}
            self.store.append([New("scores", {"scores": found, **self.store.stamp()})])

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
        history = self._view.history
        taken = {edit.id for edit in self.edits}
        for number, edit in enumerate(batch, start=len(history.edits)):
            if edit.id is None:
                ids = (f"edit-{n:05d}" for n in itertools.count(number))
                edit = replace(edit, id=next(name for name in ids if history.find(name) is None and name not in new))
            elif edit.id in taken or edit.id in new:
                raise CorrigendaError(f'An edit with the id "{edit.id}" is already written; ids must be unique.')
            new.add(edit.id)
            named.append(edit)
        return named

    def remove(self, ids: str | Iterable[str]) -> None:
        """Take edits out by their ids: what they answered is the base model's again, all else keeps its bits.

        It is `undo`, but an id that is not in the memory is an error.
        """
        wanted = {ids} if isinstance(ids, str) else set(ids)
        present = {edit.id for edit in self.edits}
        for name in sorted(wanted):
            if name not in present:
                raise CorrigendaError(f'There is no edit with the id "{name}" to remove.')
        self.undo(wanted)

    def undo(self, ids: str | Iterable[str] = (), *, author: str | None = None, **selection: str | None) -> Change:
        """Take edits out: by their ids, or `by` an author, or written `since` or `until` a time (ISO 8601).

        The memory is then, bit for bit, what a rebuild without them gives. It is not unlearning: the base model never
        held them, and the ledger keeps them.
        """
        return self._change("undo", ids, author, selection)

    def redo(self, ids: str | Iterable[str] = (), *, author: str | None = None, **selection: str | None) -> Change:
        """Put undone edits in again, each in its old place; chosen as by `undo`."""
        return self._change("redo", ids, author, selection)

    def _change(
        self, what: str, ids: str | Iterable[str], author: str | None, selection: dict[str, str | None]
    ) -> Change:
        with self._versions.lock:
            names = [ids] if isinstance(ids, str) else list(ids)
            if self.store is None:
                raise CorrigendaError(f"There are no edits to {what}.")
            self._writable()
            chosen = self.store.selected(
                names,
                author=selection.pop("by", None),
                since=selection.pop("since", None),
                until=selection.pop("until", None),
            )
            if selection:
                raise CorrigendaError(f"{what} takes by, since and until, not {next(iter(selection))}.")
            change = getattr(self.store, what)(chosen, author=author)
            self._synchronise()
            return change

    def pin(self) -> contextlib.AbstractContextManager[Version]:
        """Within, on this thread: answers by the edits as they are now, whatever others write meanwhile."""
        return self._versions.pin()

    def reserve(self, edits: int, rows: int = 8) -> None:
        """Make room for this many edits of `rows` answer positions: their buffers then keep their addresses."""
        with self._versions.lock:
            self.method.reserve(edits, rows)

    def generate(self, inputs: Tensor | None = None, *, provenance: bool = False, **kwargs: Any) -> Any:
        """As transformers' `generate`, with every sequence answered by the edit that its prompt is about, if any.

        provenance: give back a pair, the output and a `Provenance` for every row of the pass.
        """
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
        with self._versions.reading() as edits, self._provider.session(prompt, mask) as session:
            output = self.model.generate(prompt, **kwargs)
            return (output, self._provenance(session.decision, edits)) if provenance else output

    def _provenance(self, decision: Decision, edits: Sequence[Edit]) -> list[Provenance]:
        return provenance_of(decision, self.method.router.margin(decision).tolist(), edits)

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
        answers: list[Answer | None] = [None] * len(rows)
        with self._versions.reading() as edits:
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
                    found = self._provenance(session.decision, edits)
                for i, new, source in zip(part, output[:, width:].tolist(), found):
                    text = self.tokenizer.decode(new[: max_new_tokens[i]], skip_special_tokens=True)
                    answers[i] = Answer(text.strip(), source.edit, source.score, source)

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
        with self._versions.reading():
            if edited:
                yield from self._routed(ids, prompts, lengths)
            else:
                yield lambda: [-1] * len(prompts)

    def _routed(self, ids: Tensor, prompts: Sequence[int], lengths: Sequence[int]) -> Iterator[Callable[[], list[int]]]:
        rows = [row[:count] for row, count in zip(ids.tolist(), prompts)]
        known = self.method.decide(rows)
        columns = torch.arange(ids.shape[1], device=ids.device)
        last = torch.tensor(prompts, device=ids.device)[:, None] - 1
        real = columns < torch.tensor(lengths, device=ids.device)[:, None]
        gate = real if self.config.scope == "full" else real & (columns >= last)
        weight = fingerprint_weight(self.method, rows, columns <= last)
        self.context.start(torch.full((len(rows),), -1) if known is None else known.route)
        self.context.fill(gate, columns == last, weight, deciding=known is None)
        if known is not None:
            self.context.decision = known
        try:
            yield lambda: self.context.route[: len(rows)].tolist()
        finally:
            self.context.stop()

    def sources(self, rows: int) -> list[Provenance]:
        """Which edit was applied to each row of the teacher-forced pass that ran last."""
        decision = Decision(*(part[:rows] for part in self.context.decision))
        return self._provenance(decision, self.edits)

    def evaluate(self, edits: Iterable[Edit] | None = None, **options: Any) -> Scores:
        """Teacher-forced and free-generation scores of edits, by default of all that were written (see `Evaluator`)."""
        return Evaluator(self, **options).score(self.edits if edits is None else edits)

    def close(self) -> None:
        """Give the store's folder back to other writers; answering goes on, editing does not."""
        with self._versions.lock:
            if self.store is not None and self.store.directory is not None:
                self.store.close()

    def detach(self) -> Any:
        """Take the patch off and give back the base model, its module and bits as they were."""
        self.decoder.layers[self.config.layer].mlp.down_proj = self._base
        if self._tap is not None:
            self._tap.remove()
        self._provider.remove()
        self.close()
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
