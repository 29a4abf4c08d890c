"""Sense finetuning (arXiv 2402.06155) and its form for models without senses: vectors that tokens bring along."""

from __future__ import annotations

import random
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...backbone.background import background_prompts
from ...backbone.decoder import Decoder
from ...backbone.frozen import Row
from ...backbone.patch import Patch
from ...backbone.told import label_losses_of, row_losses
from ...edits.edit import Edit
from ...edits.prompts import PromptFormat
from ...errors import CorrigendaError
from ...memories.token_vectors import TokenVectors
from ...routers.context import RoutingContext
from ..defaults import edited_layer
from ..gated import GatedMethod
from ..record import Record, Solved, Written
from ..weights.defaults import filled
from .config import TokenVectorsConfig

_BASE = 1 << 10
"""Token ids are kept as two digits, for a record holds floats no larger than 2^15."""


class Chosen(NamedTuple):
    """What of an edit is learnt: distinct tokens int64 `[n]`, and `free` fp32 `[n, width]`, 1 where a vector may be."""

    tokens: Tensor
    free: Tensor


class TokenVectorMethod(GatedMethod):
    """Vectors of an edit's chosen tokens, by Adam on its mean cross-entropy and w KL(before || after) on a background
    text, another one in each step.

    They stand on those of the edits before. A record has its tokens and vectors; the memory is the sum of all.
    """

    record_shapes: ClassVar = {"tokens": ("n", "digits"), "vectors": ("n", "width")}
    uses_contexts = False
    needs_gradients = False
    config: TokenVectorsConfig
    memory: TokenVectors

    def __init__(self, decoder: Decoder, prompts: PromptFormat, config: TokenVectorsConfig) -> None:
        super().__init__(decoder, prompts, config)
        self.vocabulary = decoder.model.get_input_embeddings().weight.shape[0]
        self.memory = TokenVectors(self.vocabulary, self.vector_width, self.device)

    @staticmethod
    def resolved(config: Any, decoder: Decoder) -> Any:
        config.layer = edited_layer(config.layer, 0.5, decoder)
        return filled(config, decoder, {}, {})

    @property
    def site(self) -> nn.Module:
        """The module whose output vectors are added to."""
        raise NotImplementedError

    @property
    def vector_width(self) -> int:
        raise NotImplementedError

    def choose(self, row: Row) -> Chosen:
        """The tokens of an edit's row that get vectors, the best first."""
        raise NotImplementedError

    def sites(self) -> dict[str, nn.Module]:
        return {"": self.site}

    def tap(self, patch: Patch, context: RoutingContext) -> None:
        def take_down(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if context.active:
                self.memory.ids = args[0].reshape(-1)

        patch.pre_hook(self.decoder.model.get_input_embeddings(), take_down)

    def background(self) -> list[tuple[int, ...]]:
        """The background's texts, as token ids."""
        texts = background_prompts()[: self.config.background_prompts]
        return [tuple(self.prompts.encode(text)) for text in texts]

    def solve(self, edits: Sequence[Edit]) -> list[Solved]:
        self.prepare()
        before, solved = self.memory.view(), []
        memory = TokenVectors(self.vocabulary, self.vector_width, self.device)
        memory.add(*before.state().values())
        for edit in edits:
            (row,) = self.rows(edit, [""])
            chosen = self.choose(row)
            vectors = self._learn(edit, row, chosen, memory)
            memory.add(chosen.tokens, vectors)
            with self._with(memory, None, None):
                ((loss, held),) = label_losses_of(self.decoder, [row])
            (known,) = self.fingerprints([edit])
            tensors = {"tokens": _digits(chosen.tokens), "vectors": vectors}
            record = Record(tensors, {}, torch.as_tensor(known, dtype=torch.int32, device="cpu"))
            solved.append(Solved(Written(loss, self.config.steps, held), record))
        return solved

    def _learn(self, edit: Edit, row: Row, chosen: Chosen, memory: TokenVectors) -> Tensor:
        config, texts = self.config, self.background()
        draw = random.Random(zlib.crc32(f"{config.seed} {edit.prompt} {edit.target}".encode()))
        vectors = torch.zeros_like(chosen.free).requires_grad_()
        optimizer = torch.optim.Adam([vectors], lr=config.learning_rate, betas=(0.9, 0.995))
        for _ in range(config.steps):
            text = draw.choice(texts)
            with torch.no_grad(), self._with(memory, None, None):
                expected = self._log_probabilities(text)
            with self._with(memory, chosen.tokens, vectors * chosen.free):
                losses, _ = row_losses(self.decoder, [row])
                drift = F.kl_div(self._log_probabilities(text), expected, log_target=True, reduction="sum")
            optimizer.zero_grad()
            (losses.sum() + config.kl_weight * drift).backward()
            optimizer.step()
        return (vectors * chosen.free).detach()

    def _log_probabilities(self, text: Sequence[int]) -> Tensor:
        ids = torch.tensor([text], dtype=torch.int64, device=self.decoder.device(0))
        hidden = self.decoder.body(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)[0]
        return self.decoder.head(hidden).float().log_softmax(-1)

    @contextmanager
    def _with(self, memory: TokenVectors, tokens: Tensor | None, vectors: Tensor | None) -> Iterator[None]:
        """Within: passes are with the vectors of `memory` and those of one more edit, through which gradients go."""
        ids: list[Tensor] = []
        place = torch.full((self.vocabulary,), -1, dtype=torch.int64, device=self.device)
        if tokens is not None:
            place[tokens] = torch.arange(len(tokens), dtype=torch.int64, device=self.device)

        def take_down(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            ids[:] = [args[0].reshape(-1)]

        def add(_module: nn.Module, _args: Any, out: Tensor) -> Tensor:
            rows = out.reshape(-1, out.shape[-1]).clone()
            memory.ids = ids[0]
            always = torch.zeros(len(rows), dtype=torch.int32, device=rows.device)
            memory.read_(rows, rows, always, always.bool())
            if vectors is not None:
                own = place[ids[0]]
                rows = rows + torch.where((own >= 0)[:, None], vectors[own.clamp(min=0)], 0.0).to(rows.dtype)
            return rows.view(out.shape)

        handles = [self.decoder.model.get_input_embeddings().register_forward_pre_hook(take_down)]
        handles.append(self.site.register_forward_hook(add))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def apply(self, records: Sequence[Record]) -> None:
        for record in records:
            self.memory.add(_numbers(record.tensors["tokens"]), record.tensors["vectors"])
        self.make_known(records)

    def check(self, record: Record) -> None:
        super().check(record)
        tokens = _numbers(record.tensors["tokens"]).tolist()
        if len(set(tokens)) < len(tokens) or not all(0 <= token < self.vocabulary for token in tokens):
            raise CorrigendaError("its tokens are not distinct ones of this vocabulary")
        if record.tensors["vectors"].shape[1] != self.vector_width:
            raise CorrigendaError(f"its vectors are not {self.vector_width} wide")


class Sense(TokenVectorMethod):
    """Of a Backpack: S(v, l) sums the weights of sense l of token v at the positions that answer; B is its mean over
    the background's positions. The best of S - lambda B, where S > 0, get vectors.
    """

    def __init__(self, decoder: Decoder, prompts: PromptFormat, config: TokenVectorsConfig) -> None:
        if not hasattr(decoder.body, "senses"):
            raise CorrigendaError(
                f"{type(decoder.model).__name__} is no Backpack, whose senses this method finetunes: use "
                "--method token-vectors, which is not the paper's."
            )
        super().__init__(decoder, prompts, config)
        self._background_weights: Tensor | None = None

    @property
    def site(self) -> nn.Module:
        return self.decoder.body.senses

    @property
    def vector_width(self) -> int:
        return self.decoder.model.config.senses * self.decoder.model.config.hidden_size

    @torch.no_grad()
    def _weights(self, text: Sequence[int], first: int) -> Tensor:
        """fp32 `[vocabulary, senses]`: alpha summed over the positions of a text from `first` on, by token."""
        ids = torch.tensor([text], dtype=torch.int64, device=self.decoder.device(0))
        states: list[Tensor] = []
        handle = self.decoder.body.norm.register_forward_hook(lambda _m, _a, out: states.append(out))
        try:
            self.decoder.body(input_ids=ids)
        finally:
            handle.remove()
        alpha = self.decoder.body.weights(states[0], None)[0, :, first:].sum(1).float()  # [senses, length]
        found = torch.zeros(self.vocabulary, alpha.shape[0], dtype=torch.float32, device=alpha.device)
        return found.index_add_(0, ids[0], alpha.T)

    def choose(self, row: Row) -> Chosen:
        if self._background_weights is None:
            texts = self.background()
            total = sum(self._weights(text, 0) for text in texts)
            self._background_weights = total / sum(map(len, texts))
        own = self._weights(row.tokens, len(row.prompt) - 1)
        rank = torch.where(own > 0, own - self.config.background_weight * self._background_weights, -torch.inf)
        best = rank.flatten().topk(min(self.config.most, int((own > 0).sum()))).indices
        token, sense = best // own.shape[1], best % own.shape[1]
        tokens = token.unique()
        free = torch.zeros(len(tokens), *own.shape[1:], dtype=torch.float32, device=own.device)
        free[torch.searchsorted(tokens, token), sense] = 1
        return Chosen(tokens, free.repeat_interleave(self.vector_width // own.shape[1], 1))


class TokenVectorsAtLayer(TokenVectorMethod):
    """At a layer's down-projection: what a token adds there, later layers carry to where it is asked for."""

    @property
    def site(self) -> nn.Module:
        return self.decoder.down_proj(self.layer)

    @property
    def vector_width(self) -> int:
        return self.out_width

    def choose(self, row: Row) -> Chosen:
        texts = self.background()
        common, length = Counter(token for text in texts for token in text), sum(map(len, texts))
        own = Counter(row.prompt)
        weight = self.config.background_weight
        rank = {token: own[token] / len(row.prompt) - weight * common[token] / length for token in own}
        best = sorted(rank, key=lambda token: (-rank[token], token))[: self.config.most]
        tokens = torch.tensor(sorted(best), dtype=torch.int64, device=self.device)
        return Chosen(tokens, torch.ones(len(tokens), self.out_width, dtype=torch.float32, device=self.device))


def _digits(tokens: Tensor) -> Tensor:
    """float16 `[n, 2]` of token ids int64 `[n]`."""
    return torch.stack([tokens // _BASE, tokens % _BASE], 1).to(torch.float16)


def _numbers(digits: Tensor) -> Tensor:
    if digits.shape[1:] != (2,):
        raise CorrigendaError('its tensor "tokens" does not have two columns')
    return (digits.double() * torch.tensor([_BASE, 1], dtype=torch.float64, device=digits.device)).sum(1).long()
