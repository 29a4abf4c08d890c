"""LTE, Learning to Edit (arXiv 2402.11905): align the model once, then retrieve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...backbone.decoder import Decoder
from ...backbone.frozen import Row
from ...backbone.written import written
from ...edits.demo_facts import demo_edits
from ...edits.edit import Edit
from ...edits.loading import read_edits
from ...edits.prompts import PromptFormat
from ...errors import CorrigendaError
from ...memories.adapters import adapted
from ...memories.prompt import AlignedPrompts
from ...routers.router import EditRouter
from ...routers.tokens import TokenRouter
from ..adapters import Pair, Training, learn_adapters, target_modules
from ..prompted import Prompted, notice
from ..record import Written
from ..text_routers import text_router
from .alignment import Example, alignment_set
from .config import LteConfig


class Lte(Prompted):
    """Adapters that are learnt once, by the cross-entropy of the answers alone, and never by an edit.

    They are part of the ground: saved with the first edit, the same for all. A request without an edit is the base
    model's, adapters and all left out; with `mode="published"` there is none. The record of an edit is its text.
    """

    needs_gradients = True
    config: LteConfig
    memory: AlignedPrompts

    def __init__(self, decoder: Decoder, prompts: PromptFormat, config: LteConfig) -> None:
        super().__init__(decoder, prompts, config)
        self.modules = target_modules(decoder, "q_proj,v_proj")
        shapes = {site: (module.in_features, module.out_features) for site, module in self.modules.items()}
        devices = {site: next(module.parameters()).device for site, module in self.modules.items()}
        self.memory = AlignedPrompts(shapes, config.rank, devices)

    @staticmethod
    def text_router(config: Any, tokenizer: Any, background: Sequence[str], device: torch.device | str) -> EditRouter:
        router = text_router(config, tokenizer, background, device)
        if config.mode == "published":
            router.threshold_setting = 0.0
        return router

    def sites(self) -> dict[str, nn.Module]:
        return self.modules

    def prepare(self) -> list[str]:
        if not self.has_background:
            pairs, _, _ = learn_adapters(self.decoder, self.modules, self.alignment_rows(), self._training())
            self.memory.align(pairs)
        return super().prepare()

    def alignment_rows(self) -> list[Row]:
        """The alignment set as the model reads it; questions without a known answer get the model's own."""
        edits = self._alignment_edits()
        router = TokenRouter(self.prompts.tokenizer, [], threshold=0.0)
        router.add([edit.prompt for edit in edits])

        def nearest(place: int) -> list[int]:
            scores = router.scores(router.queries([edits[place].prompt]))
            return scores.argsort(descending=True, stable=True).tolist()

        examples = alignment_set(edits, nearest, self.config.seed)
        unknown = list(dict.fromkeys(one.question for one in examples if one.answer is None))
        asked = [self.prompts.encode(self.prompts.wrap(question)) for question in unknown]
        said = written(self.decoder.model, self.prompts.tokenizer, asked, self.config.answer_tokens)
        own = dict(zip(unknown, said))
        return [row for one in examples if (row := self._row(one, own)) is not None]

    def _row(self, example: Example, own: dict[str, str]) -> Row | None:
        answer = example.answer or own.get(example.question, "")
        if not answer.strip():
            return None  # a model that says nothing teaches nothing
        (row,) = self.rows(Edit(example.question, answer), [""])
        prompt = self.with_text(row.prompt, notice(example.facts)) if example.facts else row.prompt
        return Row(tuple(prompt), row.labels)

    def _alignment_edits(self) -> list[Edit]:
        path, most = self.config.alignment, self.config.alignment_edits
        if path is not None:
            return list(read_edits(Path(path), limit=most))
        edits = demo_edits()  # relation by relation: some of each
        return edits[:: max(1, len(edits) // most)][:most]

    def _training(self) -> Training:
        config = self.config
        rows = 4 * config.alignment_edits
        steps = config.rounds * max(1, round(rows / config.alignment_batch))
        how = config.rank, config.alpha, config.dropout, config.learning_rate, steps, config.alignment_batch
        return Training(*how, seed=config.seed, schedule="cosine")

    def told(self, rows: Sequence[Row]) -> list[Written]:
        with adapted(self.modules, self.memory.pairs):
            return super().told(rows)

    def ground(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for site, (down, up) in self.memory.pairs.items():
            found |= {f"aligned.{site}.down": down, f"aligned.{site}.up": up}
        return {**found, **super().ground()}

    def load_ground(self, tensors: dict[str, Tensor]) -> None:
        pairs = {}
        for site, (down, up) in self.memory.pairs.items():
            pair = Pair(tensors[f"aligned.{site}.down"], tensors[f"aligned.{site}.up"])
            if pair.down.shape != down.shape or pair.up.shape != up.shape:
                raise CorrigendaError(f"its alignment is not of rank {self.config.rank}")
            pairs[site] = pair
        self.memory.align(pairs)
        super().load_ground({name: tensor for name, tensor in tensors.items() if not name.startswith("aligned.")})
