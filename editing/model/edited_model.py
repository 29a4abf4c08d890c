"""The edited model: a frozen causal language model, one patched layer, and the edits written beside it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..backbone.decoder import Decoder
from ..backbone.loading import load_base
from ..backbone.modes import check_tensors, frozen, own_modes
from ..backbone.patch import Patch
from ..backbone.wrappers import unwrapped
from ..edits.edit import Edit
from ..edits.prompts import PromptFormat
from ..edits.template import Template
from ..edits.tokenizer import Tokenizer
from ..errors import CorrigendaError, warn_user
from ..memories.paged_banks import PagingCounts
from ..methods.associative.config import AssociativeConfig
from ..methods.config import EditingConfig, is_whole
from ..methods.registry import method_class, resolved
from ..routers.context import RoutingContext
from ..routers.router import Decision
from ..scores.evaluate import Evaluator, Scores
from ..store.placed import PlacedEdits
from ..store.selection import Selection
from ..store.store import Change, EditStore, OnConflict
from . import saving
from .answers import Answer, Progress, Provenance, WrittenEdits
from .attached_store import AttachedStore
from .generation import GenerateProvider
from .hub import Token
from .in_parts import check_in_parts
from .layer import EditedOutput
from .parallel import check_independent, solve_for_another
from .reader import EditReader
from .recorded_rule import another_rule
from .versions import Version, Versions
from .writer import EditWriter, StreamOptions, names_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Answer", "EditedModel", "Progress", "Provenance"]


class EditedModel:
    """A model that takes corrections in a stream, answers by them in other words too, and can be restored bit for bit.

    Prompts that no edit is about get the base model's output, bit for bit. The model itself is patched in place, on
    this instance alone; `detach` takes the patch off. It may be one in PEFT's or `torch.compile`'s wrapper, whose
    adapters belong to the base model; `generate` of the wrapper, as the model's own, answers by the edits.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        config: EditingConfig | None = None,
        *,
        template: str | Template | None = None,
        chat_template: bool = False,
        name: str | None = None,
        resident: int | None = None,
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
            check_in_parts(self.method)
            if resident is not None:
                if not is_whole(resident) or resident < 1:
                    raise CorrigendaError(f"`resident` must be a whole number above 0, not {resident!r}.")
                self.method.keep_resident(resident)
            self.name = name
            self.context = RoutingContext(self.decoder.device(self.config.layer))
            sites = self.method.sites()
            whole = None
            if self.decoder.parts is not None:
                whole = functools.partial(self.decoder.whole_inputs, self.config.layer)
            outputs = [EditedOutput(self.method.memory, self.context, place, whole) for place in sites]
            self._versions = Versions(self.method, outputs)
            self.method.applied = lambda: self._versions.edits
            self._attached = AttachedStore(
                self.method, self._versions, self._alone, lambda: (saving.header_of(self), saving.sample_of(self))
            )
            self._writer = EditWriter(
                self.method,
                self._versions,
                self._attached,
                self._alone,
                lambda store: saving.check_unchanged(store, self),
            )
            self._patch = Patch()
            for module, output in zip(sites.values(), outputs):
                self._patch.hook(module, output)
            self.method.tap(self._patch, self.context)
            self._provider = GenerateProvider(self.decoder.model, self.method, self.context, self._patch)
            self._reader = EditReader(model, tokenizer, self.method, self._versions, self._provider, self._check_read)
            self._provider.answer_all(lambda: self._reader.reading(autocast=True), lambda: bool(self._versions.current))
            self._patch.replace(self.decoder.model, "_corrigenda", self)

    @classmethod
    def wrap(cls, model: Any, tokenizer: Tokenizer, config: EditingConfig | None = None, **options: Any) -> EditedModel:
        """Make a loaded model editable; `options` are `template`, `chat_template`, `name` and `resident`."""
        return cls(model, tokenizer, config, **options)

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path | Any,
        edits: str | Path | None = None,
        *,
        config: EditingConfig | None = None,
        tokenizer: Tokenizer = None,
        template: str | Template | None = None,
        chat_template: bool = False,
        device: str | None = None,
        dtype: str | torch.dtype | None = None,
        router: str | None = None,
        resident: int | None = None,
        token: Token = None,
        edits_revision: str | None = None,
        **kwargs: Any,
    ) -> EditedModel:
        """A base model ("smollm2", GGUF file, folder, hub id; or a loaded one, with `tokenizer`) and any saved edits.

        Saved edits bring their own configuration and template; `config`, `template` and `chat_template` are for new
        ones. router: "tokens" finds saved edits by rare tokens alone, where the encoder of their router is missing;
        they can be read and undone so, and no new ones be written. resident: of how many associative edits the rows are
        kept where the layer reads; others make room for those that are asked for, and are read from the store again (an
        edit of more than 8 rows takes the room of several). None: all that were asked for. edits: a folder, or a hub id
        as text, of which `edits_revision` names the branch, tag or commit. token: for the hub, as transformers has it;
        `kwargs`, such as the base's own `revision`, go to its `from_pretrained`. Raises CorrigendaError where the saved
        edits are not for this model, or are damaged.
        """
        if tokenizer is None and not isinstance(base, (str, Path)):
            raise CorrigendaError("A loaded model comes without its tokenizer: give it as `tokenizer`.")
        if kwargs and not isinstance(base, (str, Path)):
            raise CorrigendaError(
                f"A loaded model takes no `{next(iter(kwargs))}`: that is for one that is loaded here."
            )
        if edits is not None and config is not None:
            raise CorrigendaError("Saved edits bring their own configuration: leave out `config`.")
        saved = None if edits is None else saving.read_from(edits, edits_revision, token)
        edited = None
        try:
            model, name = base, None
            if isinstance(base, (str, Path)):
                model, tokenizer = load_base(base, device=device, dtype=dtype, token=token, **kwargs)
                name = str(base)
            if saved is not None:
                saving.check_base(saved, Decoder(model), tokenizer)
                config = saving.opened_by(saved.config, router)
                template, chat_template = saved.prompts["template"], saved.prompts["chat"]
                if sentence := another_rule(saved.store, config):
                    warn_user(sentence)
            edited = cls(
                model,
                tokenizer,
                config,
                template=template,
                chat_template=chat_template,
                name=name,
                resident=resident,
            )
            if saved is not None:
                edited._attached.attach(saved.store)
        except BaseException:
            if saved is not None:
                saved.close()
            if edited is not None:
                edited.detach()
            raise
        return edited

    @property
    def edits(self) -> PlacedEdits:
        """The edits that are in the memory, by their places, each read when it is asked for; in a pinned version, that
        version's."""
        return self._versions.edits

    @property
    def paging(self) -> PagingCounts:
        """How often an edit's rows were where the layer reads, or had to be read first, since the start."""
        return self.method.paging

    @property
    def store(self) -> EditStore | None:
        """The store that the memory is a view of; None before the first edit."""
        return self._attached.store

    def edit(
        self,
        edits: Edit | Iterable[Edit],
        *,
        store: str | Path | None = None,
        resume: bool = False,
        on_conflict: OnConflict = "supersede",
        author: str | None = None,
        keep_unsolved: bool | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        score_each: Evaluator | None = None,
        group: ProcessGroup | None = None,
    ) -> WrittenEdits:
        """Write edits in batches of `config.batch_size`, in order; each batch is answered by from then on.

        store: a folder to write them into as they come (see `write_into`). resume: skip edits of the stream that are
        recorded there already. on_conflict: what to do where a stored edit is about the same fact, "supersede" it or
        "keep" it; or a function of both edits that says which. The result's `declined` has what was left out so, and of
        a list those edits whose prompt a later one has again. An id that is another edit's gets a number ("66#2").
        keep_unsolved: whether an edit that does not hold (`Written.held`) is in the memory all the same; if not, it is
        recorded as unsolved (the result's `unsolved`). By default the method's: associative leaves it out, the others,
        whose published algorithms write every edit, do not.
        score_each: an evaluator that scores every batch right after it was written.
        group: a process group whose ranks all call this: each solves batches in turn, and rank 0 writes what one
        process would, bit for bit (the others give back nothing). The method's edits must not depend on each other.
        An edit that cannot be taken stops the stream with its batch not written; what was written before stays.
        """
        self._check_read()
        if group is not None:
            if self.decoder.parts is not None:
                raise CorrigendaError(
                    "A model that is split over processes is written by all of them together: leave out `group`."
                )
            check_independent(self.method)
            if group.rank() != 0:
                with self._alone():
                    solve_for_another(self.method, group)
                return WrittenEdits()
        stream: Iterable[Edit] = edits if isinstance(edits, Iterable) else [edits]
        if store is not None:
            self.write_into(store)
        options = StreamOptions(resume, on_conflict, author, keep_unsolved, on_progress, score_each, group)
        return self._writer.write(stream, options)

    def remove(self, ids: str | Iterable[str]) -> None:
        """Take edits out by their ids: what they answered is the base model's again, all else keeps its bits.

        It is `undo`, but an id that is not in the memory is an error.
        """
        wanted = set(names_of("remove", ids))
        present = set(self._versions.current.ids)
        for name in sorted(wanted):
            if name not in present:
                raise CorrigendaError(f'There is no edit with the id "{name}" to remove.')
        self.undo(wanted)

    def undo(
        self,
        ids: str | Iterable[str] = (),
        *,
        by: str | None = None,
        since: str | None = None,
        until: str | None = None,
        author: str | None = None,
        note: str | None = None,
        resolve: bool = False,
    ) -> Change:
        """Take edits out: by their ids, or `by` an author, or written `since` or `until` a time (ISO 8601).

        The memory is then, bit for bit, what a rebuild without them gives, and no older edit answers their questions
        instead (`Withdrawn`). It is not unlearning: the base model never held them, and the ledger keeps them.
        resolve: solve anew all edits that were solved beside these or after them, as new writings of their own: the
        memory is then what the stream without these gives. The note of the undo says so.
        """
        return self._writer.undo(Selection(names_of("undo", ids), by, since, until), author, note, resolve)

    def redo(
        self,
        ids: str | Iterable[str] = (),
        *,
        by: str | None = None,
        since: str | None = None,
        until: str | None = None,
        author: str | None = None,
    ) -> Change:
        """Put undone edits in again, each in its old place; chosen as by `undo`."""
        return self._writer.redo(Selection(names_of("redo", ids), by, since, until), author)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the edits with their history (not the base model) into a new or empty folder.

        That is one SQLite ledger, and beside it a model card (README.md), which says what the ledger then held.
        """
        self._attached.save(directory)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Send the edits with their history, undone ones too, to a repository of a hub; gives the commit's address.

        options: `commit_message`, `commit_description`, `private`, `token`, `revision` and `create_pr`, as
        transformers' `push_to_hub` has them. A model card of the repository's own stays (`hub.push`).
        """
        return self._attached.push(repo_id, **options)

    def write_into(self, directory: str | Path) -> None:
        """From now on, write edits into this folder's store as they come; a batch is on the disk when it is written.

        A new or empty folder takes the edits that are there; the folder these edits were loaded from is written on.
        """
        self._attached.write_into(directory)

    def attach(self, directory: str | Path) -> None:
        """The name of `write_into` before version 0.2."""
        warn_user("`attach` is called `write_into` now.", FutureWarning)
        self.write_into(directory)

    def refresh(self) -> bool:
        """Take in what another process has written into the store; whether there was anything.

        Of a model in parts, whose processes would each read another state of a ledger that grows, it is refused.
        """
        return self._attached.refresh()

    def reserve(self, edits: int, rows: int = 8, prompt_tokens: int = 64) -> None:
        """Make room for this many edits of `rows` answer positions: their buffers then keep their addresses.

        prompt_tokens: how many distinct tokens their prompts have.
        """
        self._writer.reserve(edits, rows, prompt_tokens)

    def pin(self) -> contextlib.AbstractContextManager[Version]:
        """Within, on this thread: answers by the edits as they are now, whatever others write meanwhile."""
        return self._versions.pin()

    def generate(self, inputs: Tensor | None = None, *, provenance: bool = False, **kwargs: Any) -> Any:
        """As transformers' `generate`, with every sequence answered by the edit that its prompt is about, if any.

        Prompts that are padded on the right are read padded on the left, and given back as they came before what is
        new. Raises CorrigendaError where there is no row, or no token.
        provenance: give back a pair, the output and a `Provenance` for every row of the pass.
        """
        return self._reader.generate(inputs, provenance, kwargs)

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
        rows = self._reader.encoded(prompts, template)
        return self.answer_ids(rows, [max_new_tokens] * len(rows), batch_size)

    def answer_ids(
        self, rows: Sequence[Sequence[int]], max_new_tokens: Sequence[int], batch_size: int = 16
    ) -> list[Answer]:
        """The same for tokenised prompts, each with its own limit."""
        return self._reader.answer_ids(rows, max_new_tokens, batch_size)

    def read_as(self, rows: Sequence[Sequence[int]]) -> tuple[list[list[int]], Decision | None]:
        """Tokenised prompts as the model reads them, and what was decided of them, where edits are read as text."""
        return self._reader.read_as(rows)

    def generate_text(self, prompts: Sequence[str], max_new_tokens: int = 32) -> list[str]:
        """Greedy continuations of prompts, each in the edits' own format; the prompts are not repeated."""
        return [answer.text for answer in self.answer(prompts, max_new_tokens)]

    def teacher_forcing(
        self,
        ids: Tensor,
        prompts: Sequence[int],
        lengths: Sequence[int],
        edited: bool = True,
        known: Decision | None = None,
    ) -> contextlib.AbstractContextManager[Callable[[], list[int]]]:
        """Within: one forward over right-padded `ids` `[rows, length]`, row i routed by its first `prompts[i]` tokens.

        known: what `read_as` decided, where edits are read as text and the prompts are those that it gave.
        Yields a function that tells the edit applied to each row, or -1, once the forward has run.
        """
        return self._reader.teacher_forcing(ids, prompts, lengths, edited, known)

    def sources(self, rows: int) -> list[Provenance]:
        """Which edit was applied to each row of the teacher-forced pass that ran last."""
        return self._reader.sources(rows)

    def evaluate(self, edits: Iterable[Edit] | None = None, **options: Any) -> Scores:
        """Teacher-forced and free-generation scores of edits, by default of all that were written (see `Evaluator`)."""
        return Evaluator(self, **options).score(self.edits if edits is None else edits)

    @contextlib.contextmanager
    def _alone(self, gradients: bool = True) -> Iterator[None]:
        """Within: nobody else reads or writes, and forwards are the base model's, whose weights take no gradient."""
        with (
            self._versions.lock,
            own_modes(self.model, gradients=gradients),
            frozen(self.model),
            self._provider.aside(),
        ):
            yield

    def _check_attached(self) -> None:
        """Raise where `detach` took the patch off."""
        if getattr(self.decoder.model, "_corrigenda", None) is not self:
            raise CorrigendaError("The edits are detached from their model: load or wrap it again.")

    def _check_read(self) -> None:
        """Raise where no layer reads the edits: they are detached, or the layer is another module by now."""
        self._check_attached()
        for module in self.method.sites().values():
            if not self._patch.hooks(module):
                raise CorrigendaError(
                    f"The down_proj of layer {self.config.layer} was exchanged for another module, which reads no "
                    "edits: detach the edits and load them again."
                )

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
        self._attached.close(reading=False)
        return self.model

    def close(self) -> None:
        """Give the store's folder back to other writers; answering goes on, editing does not.

        All that was not asked for yet is read first, which for 10,000 edits takes some ten seconds.
        """
        self._attached.close(reading=True)
