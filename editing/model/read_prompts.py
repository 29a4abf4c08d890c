"""What the model reads for prompts: padded on the left, and with edits that are texts before their questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backbone.causal_model import CausalModel
from ..backbone.frozen import padded_ids
from ..errors import CorrigendaError
from ..routers.router import Decision

PAD_LEFT = 'pad them on the left (`tokenizer.padding_side = "left"`)'
"""What to do, in an error about prompts that are padded on the right."""


class ReadPrompts(NamedTuple):
    """Prompts of a `generate` call as the model reads them.

    asked     `[rows, length]`: as they came
    prompt    `[rows, length or longer]`: as they are read, padded on the left, and `mask`; the same as `asked` where
              they came so and no text is put in
    decision  what was decided of the prompts as they came; None where the pass is to decide
    """

    asked: Tensor
    prompt: Tensor
    mask: Tensor
    decision: Decision | None

    @classmethod
    def of(cls, method: Any, model: CausalModel, prompt: Tensor, mask: Tensor) -> ReadPrompts:
        """Of a call's prompts `[rows, length]`, padded where `mask` is 0, on either side."""
        asked = prompt
        if padded_on_the_right(mask):
            prompt, mask = _moved_right(prompt, mask)
        if not method.reads_text:
            return cls(asked, prompt, mask, None)
        rows = [row[keep].tolist() for row, keep in zip(prompt.cpu(), mask.bool().cpu())]
        decision = method.decide(rows)
        if not bool((decision.route >= 0).any()):
            return cls(asked, prompt, mask, decision)
        read = method.read_as(rows, decision)
        check_lengths(model, read)
        flipped = padded_ids([row[::-1] for row in read], prompt.device).flip(1)
        kept = padded_ids([[1] * len(row) for row in read], prompt.device).flip(1)
        pad = model.generation_config.pad_token_id
        flipped.masked_fill_(kept == 0, 0 if pad is None else pad)
        return cls(asked, flipped, kept, decision)

    def take_place(self, kwargs: dict[str, Any]) -> None:
        """Make a call's other arguments fit what is read."""
        if self.prompt is self.asked:
            return
        given = next((name for name in ("past_key_values", "inputs_embeds", "position_ids") if name in kwargs), None)
        if given is not None and kwargs[given] is not None:
            if padded_on_the_right(kwargs["attention_mask"]):
                raise CorrigendaError(f"Prompts padded on the right cannot have `{given}` beside them: {PAD_LEFT}.")
            raise CorrigendaError(
                f"An edit's text is put before the prompt, which `{given}` cannot know: leave it out."
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


def padded_on_the_right(mask: Tensor) -> bool:
    """Whether a row of a mask `[rows, length]` has padding after a token."""
    return bool((mask.any(1) & (mask[:, -1] == 0)).any())


def _moved_right(prompt: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Prompts and their mask with each row's padding from the right moved to its left, where generation needs it.

    What follows a prompt is predicted at the last column: padding there would be continued instead, and an edited row
    would get the base model's text.
    """
    length = prompt.shape[1]
    columns = torch.arange(length, dtype=torch.int64, device=prompt.device)
    last = torch.where(mask.bool(), columns, -1).amax(1, keepdim=True)
    source = (columns + last + 1) % length
    return prompt.gather(1, source), mask.gather(1, source)


def check_lengths(model: CausalModel, rows: Sequence[Sequence[int]]) -> None:
    """Raise where a prompt with its edit's text is longer than the model's context."""
    limit = getattr(model.config, "max_position_embeddings", None)
    for number, row in enumerate(rows, start=1):
        if limit is not None and len(row) > limit:
            raise CorrigendaError(
                f"Prompt {number} has {len(row)} tokens with its edit's text before it, more than the model's context "
                f"of {limit}: shorten it."
            )
