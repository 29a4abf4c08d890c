"""Edits, prompts and settings for the tests of WISE on tiny models."""

from __future__ import annotations

from tiny import tiny_tokenizer

from corrigenda.editing import Edit
from corrigenda.editing.backbone.background import background_prompts

NAMES = ("Zubrowka", "Krellin", "Grebz", "Kmelt", "Ostrava", "Vinder", "Hallow", "Quint", "Perth", "Lomax")
ASKS = ("The capital of {} is", "Who founded the {} museum?")
TARGETS = ("Lutz City", "Anna Blom", "Oto", "red", "Ilse")
TWENTY = [Edit(ask.format(name), TARGETS[(i + j) % 5]) for i, name in enumerate(NAMES) for j, ask in enumerate(ASKS)]
UNRELATED = background_prompts()[50:60]
LEARNT = {"contexts": 2, "steps": 6, "learning_rate": 0.5, "alpha": 0.5, "beta": 4.0, "gamma": 2.0, "act_ratio": 0.7}


def irrelevant(number):
    return tiny_tokenizer()(background_prompts()[number])["input_ids"]


def answer_half(edited, prompts):
    """Set the memories' `act_ratio` so that some of these prompts are answered by one of them and some are not."""
    memory = edited.method.memory
    minimum = memory.threshold / memory.act_ratio
    scores = sorted(answer.score for answer in edited.answer(prompts, max_new_tokens=1, batch_size=len(prompts)))
    memory.act_ratio = edited.config.act_ratio = scores[len(scores) // 2] / minimum * 1.001
