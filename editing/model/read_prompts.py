"""What the model reads for prompts whose edits are texts: with these before their questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backbone.causal_model import CausalModel
from ..backbone.frozen import padded_ids
from ..errors import CorrigendaError
from ..routers.router import Decision


class ReadPrompts(NamedTuple):
    """Prompts of a `generate` call as the model reads them.

    asked     `[rows, length]`: as they came
    prompt    `[rows, longer]`: as they are read, padded on the left, and `mask`; the same where no text is put in
    decision  what was decided of the prompts as they came; None where the pass is to decide
    """

    asked: Tensor
    prompt: Tensor
    mask: Tensor
    decision: Decision | None

    @classmethod
    def of(cls, method: Any, model: CausalModel, prompt: Tensor, mask: Tensor) -> ReadPrompts:
        """Of a call's prompts `[rows, length]`, padded where `mask` is 0."""
        if not method.reads_text:
            return cls(prompt, prompt, mask, None)
        rows = [row[keep].tolist() for row, keep in zip(prompt.cpu(), mask.bool().cpu())]
        decision = method.decide(rows)
        if not bool((decision.route >= 0).any()):
            return cls(prompt, prompt, mask, decision)
        read = method.read_as(rows, decision)
        check_lengths(model, read)
        flipped = padded_ids([row[::-1] for row in read], prompt.device).flip(1)
        kept = padded_ids([[1] * len(row) for row in read], prompt.device).flip(1)
        pad = model.generation_config.pad_token_id
        flipped.masked_fill_(kept == 0, 0 if pad is None else pad)
        return cls(prompt, flipped, kept, decision)

    def take_place(self, kwargs: dict[str, Any]) -> None:
        """Make a call's other arguments fit what is read."""
        if self.prompt is self.asked:
            return
        if kwargs.get("past_key_values") is not None:
            raise CorrigendaError(
                "An edit's text is put before the prompt, of which `past_key_values` holds the beginning: leave it out."
            )
        kwargs["attention_mask"] = self.mask
        if kwargs.get("max_length") is not None:
            kwargs["max_length"] += self.prompt.shape[1] - self.asked.shape[1]

    def put_back(self, output: Any) -> Any:
        """The output of the call, with the prompts as they came before what is new."""
        if self.prompt is self.asked:
            return output
        if isinstance(output, Tensor):
            copies = len(output) // len(self.asked)
            return torch.cat([self.asked.repeat_interleave(copies, 0), output[:, self.prompt.shape[1] :]], 1)
        output.sequences = self.put_back(output.sequences)
        return output


def check_lengths(model: CausalModel, rows: Sequence[Sequence[int]]) -> None:
    """Raise where a prompt with its edit's text is longer than the model's context."""
    limit = getattr(model.config, "max_position_embeddings", None)
    for number, row in enumerate(rows, start=1):
        if limit is not None and len(row) > limit:
            raise CorrigendaError(
                f"Prompt {number} has {len(row)} tokens with its edit's text before it, more than the model's context "
                f"of {limit}: shorten it."
            )
