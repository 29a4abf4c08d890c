"""What every method stands on: the model's parts, the settings filled in for it, contexts and background features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..backbone.decoder import Decoder
from ..backbone.frozen import Beginnings, Features, Row, common_beginning, frozen_features
from ..backbone.learning_contexts import context_texts
from ..backbone.patch import Patch
from ..backbone.repeated import Repeated
from ..edits.answer_start import AnswerPlan, AnswerStarts
from ..edits.edit import Edit
from ..edits.prompts import PromptFormat
from ..edits.tokenizer import Tokenizer
from ..errors import CorrigendaError
from ..memories.memory import Memory
from ..memories.paged_banks import PagingCounts
from ..routers.context import RoutingContext
from ..routers.router import Decision, EditRouter
from .config import EditingConfig
from .record import Record, Solved, check_tensors, sizes_of


class PromptFeatures(NamedTuple):
    """A prompt at one layer: `inputs` `[tokens, D]` of its down-projection, `pooled` `[D]` their mean."""

    inputs: Tensor
    pooled: Tensor


class Method:
    """A memory, the router that reads edits out of it, and the way they are written into it.

    Edits are written in two steps: `solve` changes nothing and gives a record of each, `apply` writes the memory from
    records. The memory is a function of the records applied since `reset`, in order.
    """

    record_shapes: ClassVar[dict[str, tuple[str, ...]]]
    """The shape of each tensor of a record, in letters: `sizes_of` has those that settings fix."""
    names_edits: ClassVar[bool] = True
    """Whether a route is an edit, by its place; else it is a memory that several share."""
    keeps_unsolved: ClassVar[bool] = False
    """Whether an edit that does not hold is written all the same, where the user does not say."""
    follows_answers: ClassVar[bool] = False
    """Whether an edit's rows are its answer's tokens, so that what is said of it tells which is read next."""
    reads_text: ClassVar[bool] = False
    """Whether an edit is read in the prompt: see `read_as`."""
    needs_gradients: ClassVar[bool] = True
    """Whether writing takes gradients through the layers above the edited one."""
    uses_contexts: ClassVar[bool] = True
    """Whether edits are learnt after several texts, and beside a background; else after the empty one alone."""
    independent: ClassVar[bool] = False
    """Whether a batch is solved alike whatever was written before it."""
    runs_in_parts: ClassVar[bool] = False
    """Whether it takes a model that is split over processes (`Decoder.parts`), where text decides the routes."""
    memory: Memory
    router: EditRouter
    applied: Callable[[], Sequence[Edit]] = staticmethod(tuple)
    """Tells the edits by their places; set by who keeps them."""

    def __init__(self, decoder: Decoder, prompts: PromptFormat, config: EditingConfig) -> None:
        self.decoder = decoder
        self.prompts = prompts
        self.config = config
        self.layer = config.layer
        self.device = decoder.device(config.layer)
        self.width, self.out_width = decoder.widths(config.layer)
        self.has_background = False
        self._contexts: list[str] | None = None
        self._beginnings: Beginnings | None = None
        self._starts = AnswerStarts(prompts, config.eos)

    @staticmethod
    def resolved(config: Any, decoder: Decoder) -> Any:
        """A configuration with every field that was left to the model filled in, and checked against the model."""
        raise NotImplementedError

    @staticmethod
    def text_router(
        config: EditingConfig, tokenizer: Tokenizer, background: Sequence[str], device: torch.device | str
    ) -> EditRouter:
        """The router of a configuration that is `routed_by_text`, without edits."""
        raise NotImplementedError

    def solve(self, edits: Sequence[Edit]) -> list[Solved]:
        """Find what a batch of edits adds to the memory as it is now, which stays as it is."""
        raise NotImplementedError

    def apply(self, records: Sequence[Record]) -> None:
        """Write the records of one batch into the memory and make them known to the router."""
        raise NotImplementedError

    # Where `reads_when_asked`: what a record holds is read when a request is first about its edit.

    @property
    def reads_when_asked(self) -> bool:
        """Whether edits can be stored by a number alone, by which their records are found again."""
        return False

    def place(self, numbers: Sequence[int], fingerprints: Sequence[Tensor]) -> None:
        """Store edits, of whose records only the fingerprints are read so far. Raises, and stores none, for others'."""
        raise NotImplementedError

    def hold(self, number: int, record: Record) -> None:
        """Take in the record of an edit that was placed, which is at hand."""
        raise NotImplementedError

    def read_by(self, read: Callable[[int], Record]) -> None:
        """How the record of a number is read, checked."""
        raise NotImplementedError

    def bring_all(self) -> None:
        """Read every record that was not asked for yet."""
        raise NotImplementedError

    def located(self, route: Tensor) -> Tensor:
        """What the layer is told of routes `[n]`, int32, of a pass: where the memories of these edits are."""
        return route

    def release(self) -> None:
        """What was located since the last time is read no longer."""

    @property
    def paging(self) -> PagingCounts:
        """How often what was located was there, or had to be read first."""
        return PagingCounts()

    def keep_resident(self, edits: int) -> None:
        """Keep the rows of so many edits where the layer reads, and of no more."""
        raise CorrigendaError(
            f"Edits of the method {self.config.method}{_routed(self.config)} are all kept where the layer reads: leave "
            "out `resident`, which is for associative edits that are found by text."
        )

    def remove(self, edits: set[int]) -> bool:
        """Take these edits out, by their places, to the bits of a rebuild without them; False: rebuild, I cannot."""
        return False

    def reset(self) -> None:
        """Forget every edit; the ground stays."""
        self.memory.reset()
        self.router.reset()

    def reserve(self, edits: int, rows: int, prompt_tokens: int) -> None:
        """Room for this many edits of `rows` answer positions, whose prompts have `prompt_tokens` distinct tokens.

        Until it is used up, buffers keep their addresses.
        """
        self.router.reserve(edits, prompt_tokens)

    def ground(self) -> dict[str, Tensor]:
        """What answers depend on besides the edits: set before the first one, and never changed after."""
        return self.router.ground()

    def load_ground(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `ground` gave."""
        self.router.load_ground(tensors)
        self.has_background = True

    def state(self) -> dict[str, Tensor]:
        """Every tensor that answers depend on."""
        return {**self.memory.state(), **self.router.state()}

    def check(self, record: Record) -> None:
        """Raise where a record does not fit this model and configuration."""
        self.check_shapes(record.tensors, sizes_of(vars(self.config), (self.width, self.out_width)))
        if not self.router.fits(record.fingerprint):
            raise CorrigendaError("its fingerprint is not one of this router's")

    @classmethod
    def check_shapes(cls, tensors: Mapping[str, Tensor], sizes: Mapping[str, int]) -> None:
        """Raise unless a record's tensors are those of this method; `sizes` of letters, as far as they are known."""
        check_tensors(tensors, cls.record_shapes, sizes)

    def write(self, edits: Sequence[Edit]) -> list[Solved]:
        """Solve and apply a batch."""
        solved = self.solve(edits)
        self.apply([one.record for one in solved])
        return solved

    def as_routed(self, prompts: Sequence[str]) -> Any:
        """Prompts in the form that the router decides by: as they are, or as fingerprints of their features."""
        if not self.router.needs_features:
            return prompts
        features = self.prompt_features(self.router_layer, prompts)
        return self.router.from_features(torch.stack([prompt.pooled for prompt in features]))

    def fingerprints(self, edits: Sequence[Edit]) -> list[Tensor]:
        """int32 `[n]` each: what the router would know these edits by."""
        return self.router.fingerprints_of(self.as_routed([edit.prompt for edit in edits]), edits)

    def make_known(self, records: Sequence[Record]) -> None:
        """Let the router know the edits of these records."""
        self.router.add_fingerprints([record.fingerprint for record in records])

    def sites(self) -> dict[str, torch.nn.Module]:
        """The modules whose outputs the memory adds to, by name: "" alone, or what `SpreadMemory.part` knows."""
        return {"": self.decoder.down_proj(self.layer)}

    def tap(self, patch: Patch, context: RoutingContext) -> None:
        """Let a feature router see the layer its fingerprints come from."""
        if not self.router.needs_features:
            return

        def observe(_module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
            if context.active and context.deciding:
                self.router.observe(args[0], context)

        patch.pre_hook(self.decoder.down_proj(self.router_layer), observe)

    @property
    def router_layer(self) -> int:
        """The layer whose features a mask router reads."""
        return self.layer

    def decide(self, prompts: Sequence[Sequence[int]]) -> Decision | None:
        """The routes of tokenised prompts, where token ids suffice; None where features must decide, in the pass.

        Of a model in parts every process asks, and the first one decides: a score that is rounded otherwise on another
        machine must not part them.
        """
        if self.router.needs_features:
            return None
        decision = self._decided(prompts)
        return decision if self.decoder.parts is None else self.decoder.parts.agreed(decision)

    def _decided(self, prompts: Sequence[Sequence[int]]) -> Decision:
        return self.router.decide([self.prompts.question(ids) for ids in prompts])

    def plans(self, prompts: Sequence[Sequence[int]], decision: Decision) -> list[AnswerPlan | None]:
        """How the answers of tokenised prompts can be said that are decided so; None where nobody follows them."""
        if not self.follows_answers:
            return [None] * len(prompts)
        edits = self.applied()
        routes = decision.route.tolist()
        return [
            self._starts.plan(ids, edits[place]) if 0 <= place < len(edits) else None
            for ids, place in zip(prompts, routes)
        ]

    def read_as(self, prompts: Sequence[Sequence[int]], decision: Decision) -> list[list[int]]:
        """What the model is to read for tokenised prompts that this was decided of: more, where it `reads_text`."""
        return [list(prompt) for prompt in prompts]

    def routes(self, prompts: Sequence[str]) -> Decision:
        """What the router decides about prompts, as `generate` would ask them."""
        ids = [self.prompts.encode(self.prompts.wrap(prompt)) for prompt in prompts]
        return self.router.decide(self.as_routed(prompts)) if self.router.needs_features else self._decided(ids)

    def holds(self, route: int, edit: int) -> bool:
        """Whether what a route names answers for the edit at this place."""
        return route == edit

    def memory_name(self, route: int) -> str | None:
        """What a user is told of the memory that a route names, where it names no edit."""
        return None

    def rows(self, edit: Edit, contexts: Sequence[str]) -> list[Row]:
        """The edit after each context, the empty one first, as what is read and what is to be predicted."""
        rows = []
        limit = getattr(self.decoder.model.config, "max_position_embeddings", None) or 1 << 30
        for context in contexts:
            prompt, target = self.prompts.encode_in_context(context, edit.prompt, edit.target)
            if len(target) > self.config.max_target_tokens:
                raise CorrigendaError(
                    f"The target of edit {edit.id or edit.prompt!r} has {len(target)} tokens, more than "
                    f"max_target_tokens={self.config.max_target_tokens}; raise that setting or shorten the target."
                )
            if special := self.prompts.special.keys() & set(target):
                shown = self.prompts.special[min(special)]
                raise CorrigendaError(
                    f"The target of edit {edit.id or edit.prompt!r} holds {shown!r} as the tokenizer reads it, a "
                    "special token that no answer shows; write the target without it."
                )
            if len(prompt) + len(target) > limit:
                raise CorrigendaError(
                    f"Edit {edit.id or edit.prompt!r} needs {len(prompt) + len(target)} tokens with its context, "
                    f"but the model's context is {limit} tokens; shorten its prompt."
                )
            if self.config.eos:
                target = [*target, self.prompts.eos]
            rows.append(Row(tuple(prompt), tuple(target)))
        return rows

    def learn_background(self) -> None:
        """Take in what features look like when no edit is asked about."""
        raise NotImplementedError

    def prepare(self) -> list[str]:
        """What every batch needs, made once: the background, and `config.contexts` texts to learn an edit after."""
        if not self.uses_contexts:
            self.has_background = True
            return [""]
        if self._contexts is None:
            self._contexts = context_texts(self.decoder.model, self.prompts.tokenizer, self.config.contexts)
            self._beginnings = self._begin(self._contexts)
        if not self.has_background:
            self.learn_background()
            self.has_background = True
        return self._contexts

    def _begin(self, contexts: Sequence[str]) -> Beginnings | None:
        """What every edit's rows begin with in these contexts: all that rows of two unlike prompts have in common."""
        if not self.decoder.is_plain(self.layer):
            return None
        rows = zip(*(self.rows(Edit(prompt, "Me"), contexts) for prompt in ("Who", "1")))
        sequences = [found for one, other in rows if (found := common_beginning(one.prompt, other.prompt))]
        return Beginnings(self.decoder, self.layer, sequences) if sequences else None

    def features(self, rows: Sequence[Sequence[int]]) -> list[Features]:
        """What editing never changes of edits' rows, as token ids."""
        return frozen_features(self.decoder, self.layer, rows, beginnings=self._beginnings)

    def repeated(self, step: Callable[[], None]) -> Repeated:
        """A step of an edit, which on a GPU becomes one launch where it can."""
        return Repeated(step, self.decoder, self.layer)

    def prompt_features(self, layer: int, prompts: Sequence[str]) -> list[PromptFeatures]:
        """A layer's input at every token of prompts, in the format that edits are asked in, and its mean."""
        ids = [self.prompts.encode(self.prompts.wrap(prompt)) for prompt in prompts]
        features = frozen_features(self.decoder, layer, ids)
        return [PromptFeatures(f.inputs, self.pooled(f.inputs, row)) for f, row in zip(features, ids)]

    def pooled(self, inputs: Tensor, prompt: Sequence[int]) -> Tensor:
        """fp32 `[D]`: mean of `inputs` `[tokens, D]` over the prompt tokens that count for a fingerprint."""
        start, end = self.prompts.user_tokens(prompt)
        return inputs[start:end].float().mean(0)


def _routed(config: EditingConfig) -> str:
    router = getattr(config, "router", None)
    return "" if router is None else f' with router="{router}"'
