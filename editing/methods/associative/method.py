"""Associative editing: every edit keeps its own key and value rows; the router names the edit, so nothing is shared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor

from ...backbone.background import background_prompts
from ...backbone.decoder import Decoder
from ...backbone.frozen import Row, length_groups, pass_tokens
from ...backbone.suffix import suffix_of
from ...edits.edit import Edit
from ...edits.prompts import PromptFormat
from ...edits.tokenizer import Tokenizer
from ...errors import CorrigendaError
from ...memories.paged_banks import PagingCounts
from ...memories.paged_rows import PagedRows
from ...memories.row_banks import PAGE, RowBanks
from ...memories.row_form import RowForm, Rows, rows_in
from ...routers.masks import MaskRouter
from ...routers.router import EditRouter
from ..config import EditingConfig
from ..method import Method
from ..record import Record, Solved, Written, check_tensors, check_values, sizes_of
from ..text_routers import text_router
from .config import AssociativeConfig, row_form
from .defaults import resolved
from .descent import Descent
from .head_start import HeadStart, readable_head
from .problem import Problem, SideBySide

_STEP_TOKENS = 320
"""Tokens in one optimisation pass on a CPU: more only enlarges the logits, 200 KB a token."""

_SURE = 0.6
"""The loss up to which an answer token is the first choice for certain: ln 2, less what rounding may change."""


class Associative(Method):
    """The project's own method.

    An edit's rows are answer positions: the last prompt token and each target token. A position's key is the edited
    layer's input there, mean over the contexts, less background, normalised; its value is an output delta, found by
    Adam on the cross-entropy of the target with keys fixed, from where the head's own rows say that it should be. One
    value serves a position in all contexts.
    """

    independent: ClassVar = True
    follows_answers: ClassVar = True
    runs_in_parts: ClassVar = True
    record_shapes: ClassVar = {"keys": ("rows", "D"), "values": ("rows", "d")}
    config: AssociativeConfig
    memory: PagedRows | RowBanks

    resolved = staticmethod(resolved)

    def __init__(self, decoder: Decoder, prompts: PromptFormat, config: AssociativeConfig) -> None:
        super().__init__(decoder, prompts, config)
        dtype = decoder.model.get_input_embeddings().weight.dtype
        self.form = row_form(config)
        self.banks = RowBanks(self.width, self.out_width, config.beta, self.device, dtype, self.form)
        self._head: HeadStart | None = None
        self._frames = prompts.other_frames(config.formats == "common")
        if config.routed_by_text:
            self.router = self.text_router(config, prompts.tokenizer, background_prompts(), self.device)
        else:
            device = decoder.device(config.router_layer)
            width = decoder.widths(config.router_layer)[0]
            self.router = MaskRouter(width, config.top_k, seed=config.seed, threshold=config.threshold, device=device)
        # What decides in a pass names places there, on the device: rows must be at these places.
        self.memory = self.banks if self.router.needs_features else PagedRows(self.banks)

    @staticmethod
    def text_router(
        config: EditingConfig, tokenizer: Tokenizer, background: Sequence[str], device: torch.device | str
    ) -> EditRouter:
        return text_router(config, tokenizer, background, device)

    @property
    def router_layer(self) -> int:
        return self.config.router_layer

    def prepare(self) -> list[str]:
        if self._head is None and self.config.start == "head" and readable_head(self.decoder):
            self._head = HeadStart(self.decoder)
        return super().prepare()

    def rows(self, edit: Edit, contexts: Sequence[str]) -> list[Row]:
        """Also in other formats than its own (`config.formats`); its own prompt stays the first."""
        rows = super().rows(edit, contexts)
        prompts = [self.prompts.encode_in_frame(frame, edit.prompt) for frame in self._frames]
        limit = getattr(self.decoder.model.config, "max_position_embeddings", None) or 1 << 30
        labels = rows[0].labels  # where a frame is too long for the model, its own once more: all edits have as many
        return rows + [Row(tuple(ids), labels) if len(ids) + len(labels) <= limit else rows[0] for ids in prompts]

    def solve(self, edits: Sequence[Edit]) -> list[Solved]:
        """The edits of a batch are independent problems, solved side by side.

        One whose own prompt does not get its target then is solved anew, up to `retries` times, each with four times
        the steps of the time before and half the learning rate.
        """
        contexts = self.prepare()
        problems = self._attempt(edits, contexts, 0)
        for retry in range(1, self.config.retries + 1):
            failing = [e for e, problem in enumerate(problems) if not problem.held]
            if not failing:
                break
            for e, again in zip(failing, self._attempt([edits[e] for e in failing], contexts, retry)):
                again.steps += problems[e].steps
                problems[e] = again
        solved = []
        for problem, known in zip(problems, self.fingerprints(edits)):
            rows = self.form.kept(problem.keys, problem.values.detach(), self.banks.dtype)
            record = Record(rows.tensors, {}, torch.as_tensor(known, dtype=torch.int32, device="cpu"))
            solved.append(Solved(Written(problem.loss, problem.steps, problem.held), record))
        return solved

    def _attempt(self, edits: Sequence[Edit], contexts: Sequence[str], retry: int) -> list[Problem]:
        """Solve edits once, for the first time (0) or again."""
        config = self.config
        rows = [self.rows(edit, contexts) for edit in edits]
        count = len(rows[0])
        features = self.features([row.tokens for of_edit in rows for row in of_edit])
        problems = [
            Problem(own, features[e * count : (e + 1) * count], self.banks, config) for e, own in enumerate(rows)
        ]
        if self._head is not None:
            for problem in problems:
                problem.start(self._head(problem.rows[0].labels), config.start_norm)
        for group in length_groups([problem.tokens for problem in problems], pass_tokens(self.device, _STEP_TOKENS)):
            self._solve([problems[e] for e in group], retry)
        return problems

    def apply(self, records: Sequence[Record]) -> None:
        for record in records:
            self.memory.append(*rows_in(record.tensors))
        self.make_known(records)

    @property
    def reads_when_asked(self) -> bool:
        return isinstance(self.memory, PagedRows)

    @property
    def _paged(self) -> PagedRows:
        return cast(PagedRows, self.memory)

    def place(self, numbers: Sequence[int], fingerprints: Sequence[Tensor]) -> None:
        self.router.add_fingerprints(fingerprints)
        self._paged.place(numbers)

    def hold(self, number: int, record: Record) -> None:
        self._paged.hold(number, rows_in(record.tensors))

    def read_by(self, read: Callable[[int], Record]) -> None:
        self._paged.read = lambda number: rows_in(read(number).tensors)

    def located(self, route: Tensor) -> Tensor:
        return self._paged.locate(route) if self.reads_when_asked else route

    def bring_all(self) -> None:
        self._paged.bring_all()

    def release(self) -> None:
        if self.reads_when_asked:
            self._paged.release()

    @property
    def paging(self) -> PagingCounts:
        return self._paged.paged.counts if self.reads_when_asked else super().paging

    def keep_resident(self, edits: int) -> None:
        if not self.reads_when_asked:
            super().keep_resident(edits)
        self._paged.paged.limit(edits, PAGE, self.config.max_target_tokens + 1)

    def learn_background(self) -> None:
        background = self.prompt_features(self.layer, background_prompts()[: self.config.background_prompts])
        self.banks.background.copy_(torch.cat([prompt.inputs for prompt in background]).float().mean(0))
        if self.router.needs_features:
            texts = background_prompts()
            pooled = [prompt.pooled for prompt in self.prompt_features(self.router_layer, texts)]
            self.router.set_background(torch.stack(pooled))

    def _solve(self, problems: Sequence[Problem], retry: int) -> None:
        """Adam on the values of all problems at once, each stopping alone when its loss is low enough."""
        config = self.config
        hidden = [h for problem in problems for h in problem.hidden]
        rows = [row for problem in problems for row in problem.rows]
        starts = [len(row.prompt) - 1 for row in rows]
        whole = SideBySide(problems, suffix_of(self.decoder, self.layer, hidden, rows, starts))
        rate = config.learning_rate
        if rate is None:  # a step of Adam changes every entry by about its rate
            rate = config.relative_rate / math.sqrt(self.out_width)
        from_head = self._head is not None  # which knows nothing of the layers between: a step is taken in any case
        descent = Descent(whole, config, rate / 2**retry, first_is_taken=from_head)
        descent.look()
        unit = self.repeated(descent.step_and_look)
        most = config.steps * 4**retry
        for taken in range(most):
            reached, going = descent.reached()
            for problem, loss, goes in zip(descent.part.problems, reached, going):
                problem.loss, problem.steps = loss, problem.steps + goes
            if not any(going):
                break
            kept = [i for i, goes in enumerate(going) if goes]
            if taken == most - 1:
                descent.step()
                break
            if taken == 0 and from_head and config.gain > 1:
                descent.step()
                kept = self._strengthen(descent.part, [config.stop_loss] * len(going))
                if not kept:
                    break
            elif len(kept) < len(going) and self.device.type == "cpu":  # elsewhere other rows would be another graph
                descent.step()
            else:
                unit()
                continue
            descent = descent.select(kept)
            descent.look()
            unit = self.repeated(descent.step_and_look)
        weak = [i for i, problem in enumerate(whole.problems) if not problem.strong]
        if weak:
            part = whole.select(weak)
            self._strengthen(part, [math.inf if config.gain == 1 else problem.loss for problem in part.problems])
        self._round(whole)
        self._see_what_holds(whole)

    @torch.no_grad()
    def _round(self, whole: SideBySide) -> None:
        """Make values what will be kept of them. How far that moves a loss is within what `_SURE` leaves."""
        if self.form.value_dtype != "model":
            for problem in whole.problems:
                problem.scaled.copy_(self.form.rounded(problem.values) / problem.scales)

    @torch.no_grad()
    def _strengthen(self, part: SideBySide, limits: Sequence[float]) -> list[int]:
        """Multiply values by `gain` where the edit's loss is then within its limit; the places of the others.

        An answer token whose loss is below ln 2 has more than half of the probability, and is the first choice: most
        edits show by the losses that they hold.
        """
        losses = part.token_losses(self.config.gain)
        sure = (losses[:, 0] < _SURE).all(1).tolist()
        others = []
        for i, (loss, holds, limit) in enumerate(zip(part.means(losses).tolist(), sure, limits)):
            problem = part.problems[i]
            if loss <= limit:
                problem.loss, problem.held, problem.strong = loss, holds, True
                problem.scaled.mul_(self.config.gain)
            else:
                others.append(i)
        return others

    @torch.no_grad()
    def _see_what_holds(self, whole: SideBySide) -> None:
        """One pass more for those of which no losses say it."""
        unsure = [i for i, problem in enumerate(whole.problems) if not problem.held]
        if unsure:
            part = whole.select(unsure)
            for problem, answered in zip(part.problems, part.answered()):
                problem.held = answered

    @classmethod
    def check_shapes(cls, tensors: Mapping[str, Tensor], sizes: Mapping[str, int]) -> None:
        values = tensors.get("values")
        form = RowForm(sizes.get("p"), "int8" if values is not None and values.dtype == torch.int8 else "model")
        check_tensors({**tensors, "values": values.float()} if form.has_scales else tensors, form.shapes(), sizes)
        if form.has_scales:
            check_values({"values": rows_in(tensors).read_values})

    @classmethod
    def check_rows(cls, tensors: Mapping[str, Tensor], config: AssociativeConfig, widths: Sequence[int]) -> Rows:
        """The rows that a record holds; raises where they are none of this configuration and these widths."""
        cls.check_shapes(tensors, sizes_of(vars(config), widths))
        _check_form(tensors, config)
        return rows_in(tensors)

    def check(self, record: Record) -> None:
        super().check(record)
        _check_form(record.tensors, self.config)
        # The table of pages is as wide as the longest edit: one of a million rows would be paid for by every other. As
        # the record does, the setting comes from the folder: beyond the model's context no target goes in any case.
        limit = getattr(self.decoder.model.config, "max_position_embeddings", None) or 1 << 30
        rows, longest = len(record.tensors["keys"]), min(self.config.max_target_tokens + 1, limit)
        if rows > longest:
            raise CorrigendaError(f"it has {rows} rows, and the longest target with its end has {longest} tokens")

    def remove(self, edits: set[int]) -> bool:
        self.memory.remove(edits)
        self.router.remove(edits)
        return True

    def reset(self) -> None:
        self.remove(set(range(self.memory.size)))

    def reserve(self, edits: int, rows: int, prompt_tokens: int) -> None:
        super().reserve(edits, rows, prompt_tokens)
        self.memory.reserve(edits, rows)

    def ground(self) -> dict[str, Tensor]:
        return {"memory.background": self.banks.background, **self.router.ground()}

    def load_ground(self, tensors: dict[str, Tensor]) -> None:
        self.banks.background = tensors["memory.background"].to(self.banks.background)
        self.router.load_ground(tensors)
        self.has_background = True


def _check_form(tensors: Mapping[str, Tensor], config: AssociativeConfig) -> None:
    if ("scales" in tensors) != row_form(config).has_scales:
        raise CorrigendaError(f'its values are not of the type that its configuration has, "{config.value_dtype}"')
