"""StableKE (arXiv 2402.13048): finetuning on wordings and descriptions, so that what follows from an edit follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from ...backbone.frozen import Row
from ...edits.edit import Edit
from ..adapters import Training
from ..lora.method import AdapterMethod
from .config import StableKeConfig
from .wordings import wordings


class StableKe(AdapterMethod):
    """Plain finetuning of an edit's adapter on its prompt, its paraphrases and its descriptions, eight a step."""

    display: ClassVar = "StableKE"
    config: StableKeConfig

    def learnt_from(self, edits: Sequence[Edit]) -> list[list[Row]]:
        return [self._rows_of(edit) for edit in edits]

    def _rows_of(self, edit: Edit) -> list[Row]:
        config, tokenizer = self.config, self.prompts.tokenizer
        found = wordings(
            self.decoder.model, tokenizer, edit, config.paraphrases, config.descriptions, config.wording_tokens
        )
        rows = self.rows(edit, [""])
        for text in found.paraphrases:
            rows += self.rows(Edit(text, edit.target, id=edit.id), [""])
        # A description is learnt as a text by itself: after the first of its tokens all are predicted.
        for text in found.descriptions:
            ids = tokenizer(text)["input_ids"]
            rows.append(Row(tuple(ids[:1]), (*ids[1:], *([self.prompts.eos] if config.eos else []))))
        return [row for row in dict.fromkeys(rows) if row.labels]

    def training(self, edit: Edit, rows: Sequence[Row]) -> Training:
        return replace(super().training(edit, rows), batch_size=8)
