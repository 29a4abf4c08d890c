"""What methods share whose edits the model reads in its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from ..backbone.background import background_prompts
from ..backbone.decoder import Decoder
from ..backbone.frozen import Row
from ..backbone.told import label_losses_of
from ..edits.edit import Edit
from ..edits.prompts import PromptFormat
from ..edits.template import join, join_target
from ..edits.tokenizer import Tokenizer
from ..memories.prompt import PromptMemory, put_before, text_of, text_tensor
from ..routers.router import Decision, EditRouter
from .defaults import edited_layer
from .method import Method
from .rag.config import PromptConfig
from .record import Record, Solved, Written
from .text_routers import text_router

NOTICE = (
    "Please acknowledge the updated information provided below and respond to the subsequent question.\n\n"
    "[Updated Information]:\n{facts}\n\n[Question]:\n"
)
"""LTE's words before a question, as its training data have them."""


def notice(facts: Sequence[str]) -> str:
    """LTE's text before a question; of several facts a numbered line each."""
    lines = [f"{number}. {fact}" for number, fact in enumerate(facts, start=1)] if len(facts) > 1 else facts
    return NOTICE.format(facts="\n".join(lines))


def fact_of(edit: Edit) -> str:
    """An edit as one line of text."""
    return " ".join(join(edit.prompt, edit.target).split())


class Prompted(Method):
    """A router by text, and the texts of the edits. A routed prompt is read with the edit's text before its question.

    The record of an edit is that text, as bytes.
    """

    record_shapes: ClassVar = {"text": ("bytes",)}
    keeps_unsolved = True
    uses_contexts = False
    reads_text = True
    needs_gradients = False
    config: PromptConfig
    memory: PromptMemory

    def __init__(self, decoder: Decoder, prompts: PromptFormat, config: PromptConfig) -> None:
        super().__init__(decoder, prompts, config)
        self.memory = PromptMemory()
        self.router = self.text_router(config, prompts.tokenizer, background_prompts(), self.device)

    @staticmethod
    def resolved(config: Any, decoder: Decoder) -> Any:
        config.layer = edited_layer(config.layer, 0.9, decoder)  # where the model's weights are sampled, no more
        return config

    @staticmethod
    def text_router(
        config: Any, tokenizer: Tokenizer, background: Sequence[str], device: torch.device | str
    ) -> EditRouter:
        return text_router(config, tokenizer, background, device)

    def sites(self) -> dict[str, torch.nn.Module]:
        return {}

    def text(self, edit: Edit) -> str:
        """What is put before a question that is the edit's."""
        if self.config.form == "notice":
            return notice([fact_of(edit)])
        # An example that ends shows that an answer ends: without, the model goes on to questions of its own. In a chat
        # the user's turn would end there.
        ends = self.config.eos and not self.prompts.chat
        end = self.prompts.tokenizer.decode([self.prompts.eos]) if ends else ""
        return join_target(self.prompts.template.wrap(edit.prompt), edit.target).rstrip() + f"{end}\n\n"

    def with_text(self, prompt: Sequence[int], text: str) -> list[int]:
        """A tokenised prompt with a text before its question: in a chat in the user's turn, else at its beginning."""
        tokens = self.prompts.tokenizer(text, add_special_tokens=False)["input_ids"]
        return put_before(prompt, tokens, self.prompts.text_place(prompt))

    def read_as(self, prompts: Sequence[Sequence[int]], decision: Decision) -> list[list[int]]:
        return [
            list(prompt) if route < 0 else self.with_text(prompt, self.memory.texts[route])
            for prompt, route in zip(prompts, decision.route.tolist())
        ]

    def solve(self, edits: Sequence[Edit]) -> list[Solved]:
        self.prepare()
        texts = [self.text(edit) for edit in edits]
        rows = [self.rows(edit, [""])[0] for edit in edits]
        read = [Row(tuple(self.with_text(row.prompt, text)), row.labels) for row, text in zip(rows, texts)]
        found = self.told(read)
        return [
            Solved(written, Record({"text": text_tensor(text)}, {}, known))
            for written, text, known in zip(found, texts, self.fingerprints(edits))
        ]

    def told(self, rows: Sequence[Row]) -> list[Written]:
        """How each of the rows, an edit's text with its prompt and target, goes by the model as it reads edits."""
        return [Written(loss, 0, held) for loss, held in label_losses_of(self.decoder, rows)]

    def apply(self, records: Sequence[Record]) -> None:
        for record in records:
            self.memory.append(text_of(record.tensors["text"]))
        self.make_known(records)

    def check(self, record: Record) -> None:
        super().check(record)
        text_of(record.tensors["text"])

    def remove(self, edits: set[int]) -> bool:
        self.memory.remove(edits)
        self.router.remove(edits)
        return True

    def reset(self) -> None:
        self.remove(set(range(self.memory.size)))
