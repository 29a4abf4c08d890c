"""Associative editing: every edit keeps its own key and value rows; the router names the edit, so nothing is shared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...backbone.background import background_prompts
from ...backbone.decoder import Decoder
from ...backbone.frozen import Features, Row, length_groups, pass_tokens
from ...backbone.suffix import Suffix, suffix_of
from ...edits.edit import Edit
from ...edits.prompts import PromptFormat
from ...errors import CorrigendaError
from ...memories.row_banks import RowBanks
from ...routers.masks import MaskRouter
from ...routers.meaning.router import MeaningRouter
from ...routers.router import EditRouter
from ...routers.tokens import TokenRouter
from ..config import EditingConfig
from ..method import Method
from ..record import Record, Solved, Written
from .config import AssociativeConfig
from .defaults import resolved

_STEP_TOKENS = 320
"""Tokens in one optimisation pass on a CPU: more only enlarges the logits, 200 KB a token."""


class Associative(Method):
    """The project's own method.

    An edit's rows are answer positions: the last prompt token and each target token. A position's key is the edited
    layer's input there, mean over the contexts, less background, normalised; its value is an output delta, found by
    Adam on the cross-entropy of the target with keys fixed. One value serves a position in all contexts.
    """

    record_shapes: ClassVar = {"keys": ("rows", "D"), "values": ("rows", "d")}
    config: AssociativeConfig
    memory: RowBanks

    resolved = staticmethod(resolved)

    def __init__(self, decoder: Decoder, prompts: PromptFormat, config: AssociativeConfig) -> None:
        super().__init__(decoder, prompts, config)
        dtype = decoder.model.get_input_embeddings().weight.dtype
        self.memory = RowBanks(self.width, self.out_width, config.beta, self.device, dtype)
        if config.routed_by_text:
            self.router = self.text_router(config, prompts.tokenizer, background_prompts(), self.device)
        else:
            device = decoder.device(config.router_layer)
            width = decoder.widths(config.router_layer)[0]
            self.router = MaskRouter(width, config.top_k, seed=config.seed, threshold=config.threshold, device=device)

    @staticmethod
    def text_router(
        config: EditingConfig, tokenizer: Any, background: Sequence[str], device: torch.device | str
    ) -> EditRouter:
        if isinstance(config, AssociativeConfig) and config.router == "meaning":
            return MeaningRouter(tokenizer, background, encoder=config.encoder, threshold=config.threshold)
        return TokenRouter(tokenizer, background, threshold=config.threshold, device=device)

    @property
    def router_layer(self) -> int:
        return self.config.router_layer

    def solve(self, edits: Sequence[Edit]) -> list[Solved]:
        """The edits of a batch are independent problems, solved side by side."""
        contexts = self.prepare()
        rows = [self.rows(edit, contexts) for edit in edits]
        features = self.features([row.tokens for of_edit in rows for row in of_edit])
        count = len(contexts)
        problems = [
            _Problem(rows[e], features[e * count : (e + 1) * count], self.memory.background, self.config.beta)
            for e in range(len(edits))
        ]
        for group in length_groups([problem.tokens for problem in problems], pass_tokens(self.device, _STEP_TOKENS)):
            self._solve([problems[e] for e in group])
        solved = []
        for problem, known in zip(problems, self.fingerprints(edits)):
            tensors = {
                "keys": problem.keys.to(self.memory.dtype),
                "values": problem.values.detach().to(self.memory.dtype),
            }
            record = Record(tensors, {}, torch.as_tensor(known, dtype=torch.int32, device="cpu"))
            solved.append(Solved(Written(problem.loss, problem.steps), record))
        return solved

    def apply(self, records: Sequence[Record]) -> None:
        for record in records:
            self.memory.append(record.tensors["keys"], record.tensors["values"])
        self.make_known(records)

    def learn_background(self) -> None:
        background = self.prompt_features(self.layer, background_prompts()[: self.config.background_prompts])
        self.memory.background.copy_(torch.cat([prompt.inputs for prompt in background]).float().mean(0))
        if self.router.needs_features:
            texts = background_prompts()
            pooled = [prompt.pooled for prompt in self.prompt_features(self.router_layer, texts)]
            self.router.set_background(torch.stack(pooled))

    def _solve(self, problems: Sequence[_Problem]) -> None:
        """Adam on the values of all problems at once, each stopping alone when its loss is low enough."""
        config = self.config
        hidden = [h for problem in problems for h in problem.hidden]
        rows = [row for problem in problems for row in problem.rows]
        starts = [len(row.prompt) - 1 for row in rows]
        whole = _SideBySide(problems, suffix_of(self.decoder, self.layer, hidden, rows, starts))
        optimizer = torch.optim.Adam(
            [problem.values for problem in problems],
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
        )
        running = whole
        for _ in range(config.steps):
            loss = running.losses()
            goes_on = loss.detach() > config.stop_loss
            reached, going = torch.stack([loss.detach(), goes_on.to(loss.dtype)]).tolist()  # all that a step waits for
            for problem, value, goes in zip(running.problems, reached, going):
                problem.loss, problem.steps = value, problem.steps + bool(goes)
            if not any(going):
                break
            optimizer.zero_grad()
            torch.where(goes_on, loss, 0.0).sum().backward()
            for problem, goes in zip(running.problems, going):
                if not goes:  # a gradient of zero would still let Adam's momentum carry it on
                    problem.values.grad = None
            optimizer.step()
            if not all(going):
                running = running.select([i for i, goes in enumerate(going) if goes])
        if config.gain != 1:
            self._strengthen(whole)

    @torch.no_grad()
    def _strengthen(self, whole: _SideBySide) -> None:
        """Multiply values by `gain` where the loss is no higher for it."""
        for problem, loss in zip(whole.problems, whole.losses(self.config.gain).tolist()):
            if loss <= problem.loss:
                problem.loss = loss
                problem.values.mul_(self.config.gain)

    def check(self, record: Record) -> None:
        super().check(record)
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
        return {"memory.background": self.memory.background, **self.router.ground()}

    def load_ground(self, tensors: dict[str, Tensor]) -> None:
        self.memory.background = tensors["memory.background"].to(self.memory.background)
        self.router.load_ground(tensors)
        self.has_background = True

    def state(self) -> dict[str, Tensor]:
        return {**self.memory.state(), **self.router.state()}


class _Problem:
    """The values of one edit: everything about them is fixed but the values themselves.

    The read is linear in the values, so it is a matrix: `reads` `[tokens, positions]` times values `[positions, d]` is
    what the memory adds at every token that it touches, context after context. `loss` and `steps`: how solving went.
    """

    def __init__(self, rows: Sequence[Row], features: Sequence[Features], background: Tensor, beta: float) -> None:
        self.rows = rows
        self.hidden = [f.hidden for f in features]
        positions = len(rows[0].labels)
        inputs = torch.stack([f.inputs[-positions:].float() - background for f in features])
        self.keys = F.normalize(inputs.mean(0), dim=-1)
        scores = beta * F.normalize(inputs, dim=-1) @ self.keys[1:].T
        reads = inputs.new_zeros(*inputs.shape[:2], positions)
        reads[:, 0, 0] = 1
        reads[:, 1:, 1:] = scores[:, 1:].softmax(-1)
        self.reads = reads.flatten(0, 1)
        self.tokens = len(self.reads)
        self.values = torch.zeros(
            positions, self.hidden[0].shape[1], dtype=torch.float32, device=inputs.device, requires_grad=True
        )
        self.loss, self.steps = math.inf, 0


class _SideBySide:
    """Problems whose rows pass the layers above the edited one together."""

    def __init__(self, problems: Sequence[_Problem], suffix: Suffix) -> None:
        self.problems = problems
        self.suffix = suffix
        self._tokens = torch.tensor(
            [problem.tokens for problem in problems], dtype=torch.int64, device=suffix.hidden.device
        )

    def losses(self, gain: float = 1.0) -> Tensor:
        """Mean cross-entropy `[problems]` of each one's labels in all its contexts, with `gain` times its values."""
        delta = torch.cat([problem.reads @ problem.values for problem in self.problems])
        per_row = self.suffix.losses(delta if gain == 1 else gain * delta).sum(1)
        return per_row.view(len(self.problems), -1).sum(1) / self._tokens

    def select(self, kept: Sequence[int]) -> _SideBySide:
        """Some of them, by their places."""
        contexts = len(self.problems[0].rows)
        rows = torch.tensor(
            [i * contexts + context for i in kept for context in range(contexts)], dtype=torch.int64, device="cpu"
        )
        return _SideBySide([self.problems[i] for i in kept], self.suffix.select(rows.to(self._tokens.device)))
