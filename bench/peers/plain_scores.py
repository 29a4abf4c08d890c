"""Scores of a model that other code edited, one prompt at a time, by whatever that code calls to ask it.

Prompts, tokens and rules are those of `corrigenda.editing.Evaluator`, which asks models that this project edited in
batches; `tests/test_peers.py` compares the two. One prompt a pass: published code that routes takes no batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from corrigenda.editing import Edit
from corrigenda.editing.scores.evaluate import normalised

SPARE_TOKENS = 4
"""How far an answer may run past the target's length before it counts as not having stopped, as in `Evaluator`."""


@dataclass(frozen=True)
class Asking:
    """How a model is asked.

    logits: from token ids `[1, n]` and the number of them that are the prompt, to logits `[1, n, vocabulary]`
    generate: from ids of a prompt `[1, n]` and a limit, to ids `[1, n + at most limit]`, greedily
    """

    logits: Callable[[torch.Tensor, int], torch.Tensor]
    generate: Callable[[torch.Tensor, int], torch.Tensor]


class PlainScores:
    """Scores edits on a model; made while the model is unedited, whose answers to locality prompts it keeps."""

    def __init__(self, prompts: Any, tokenizer: Any, edits: Sequence[Edit], unedited: Asking) -> None:
        """prompts: an edited model's `prompts`, with the template that everything is put in."""
        self.prompts, self.tokenizer = prompts, tokenizer
        self._unedited = {
            (locality.prompt, locality.answer): self._predicted(
                unedited, *self._encoded(locality.prompt, locality.answer)
            )
            for edit in edits
            for locality in edit.localities
            if locality.answer is not None
        }

    def score(self, edits: Sequence[Edit], asking: Asking) -> dict[str, Any]:
        """Rel, Gen, Loc and the free scores, means over edits, as `Evaluator.score` has them."""
        found: dict[str, list[float]] = {name: [] for name in ("rel", "gen", "loc", "free_rel", "free_gen")}
        for edit in edits:
            own = [(edit.prompt, edit.target)]
            again = [(text, edit.target) for text in edit.rephrases]
            kept = [(one.prompt, one.answer) for one in edit.localities if one.answer is not None]
            for name, asked in (("rel", own), ("gen", again)):
                if asked:
                    found[name].append(_mean([self._agrees(asking, *pair) for pair in asked]))
                    found[f"free_{name}"].append(_mean([self._free(asking, *pair) for pair in asked]))
            if kept:
                found["loc"].append(_mean([self._agrees(asking, *pair, self._unedited[pair]) for pair in kept]))
        return {"n": len(edits), **{name: _mean(values) if values else None for name, values in found.items()}}

    def _encoded(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        return self.prompts.encode_with_target(prompt, answer)

    def _predicted(self, asking: Asking, prompt: list[int], answer: list[int]) -> list[int]:
        """The argmax at each token of the answer, given those before it."""
        with torch.no_grad():
            logits = asking.logits(torch.tensor([prompt + answer[:-1]]), len(prompt))
        return logits[0, len(prompt) - 1 :].argmax(-1).tolist()

    def _agrees(self, asking: Asking, prompt: str, answer: str, wanted: list[int] | None = None) -> float:
        encoded, target = self._encoded(prompt, answer)
        predicted = self._predicted(asking, encoded, target)
        return _mean([float(found == right) for found, right in zip(predicted, wanted or target)])

    def _free(self, asking: Asking, prompt: str, answer: str) -> float:
        encoded, target = self._encoded(prompt, answer)
        with torch.no_grad():
            output = asking.generate(torch.tensor([encoded]), len(target) + SPARE_TOKENS)
        text = self.tokenizer.decode(output[0, len(encoded) :], skip_special_tokens=True)
        return float(normalised(text) == normalised(answer))


def asking_of(model: Any, tokenizer: Any) -> Asking:
    """How a transformers model is asked as it is."""

    def generate(ids: torch.Tensor, limit: int) -> torch.Tensor:
        return model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=limit,
            do_sample=False,
            repetition_penalty=1.0,
            pad_token_id=tokenizer.eos_token_id,
        )

    return Asking(lambda ids, _: model(input_ids=ids, use_cache=False).logits, generate)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
