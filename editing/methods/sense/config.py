"""The settings of sense finetuning, and of its form for models without senses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..config import is_number
from ..documented import documented
from ..weights.config import WeightsConfig


@dataclass
class TokenVectorsConfig(WeightsConfig):
    """What both forms have. The numbers are the paper's for its task "country" at a budget of 1e-3."""

    fingerprint: ClassVar = "tokens"
    only_solving: ClassVar = WeightsConfig.only_solving | {
        *("most", "background_weight", "steps", "learning_rate", "kl_weight", "eos", "seed", "background_prompts")
    }
    most: int = 8
    """How many vectors an edit has: those of the best tokens, or senses of tokens (k)."""
    background_weight: float = 1745.0
    """What a token counts less for what it counts in the background (lambda)."""
    steps: int = 10
    """Adam's, each on the edit and one background text."""
    learning_rate: float = 0.0149
    """Of Adam, as published."""
    kl_weight: float = 0.421
    """What the drift on the background text counts beside the edit's cross-entropy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("most", "steps"):
            self._require_positive(name)
        for name in ("learning_rate", "background_weight", "kl_weight"):
            value = getattr(self, name)
            least = name == "learning_rate"
            fits = is_number(value) and 0 <= value < math.inf and not (least and value == 0)
            self._require(fits, name, "a number above 0" if least else "a number from 0 on")


@documented
@dataclass
class SenseConfig(TokenVectorsConfig):
    """Sense finetuning (arXiv 2402.06155): the senses of a Backpack that an edit's answer hangs on get vectors more.

    For a base that is a Backpack (`backbone/backpack.py`). An edit is a canonical example of the kind "good": its
    prompt and target. Beyond the paper: each edit has vectors of its own, which are summed, so that it can be taken
    out; Adam is not of 8 bits; and a router may gate.
    """

    method: ClassVar[str] = "sense"
    names: ClassVar = ("sense",)
    summary: ClassVar = "vectors for senses of tokens, of a Backpack"


@documented
@dataclass
class TokenVectorConfig(TokenVectorsConfig):
    """Vectors for tokens, at a layer of a model without senses. It is not the paper's, which has no such form.

    What it has of sense finetuning: vectors that a token brings along wherever it stands, and how they are learnt. A
    token is chosen by its share of the prompt's tokens, less `background_weight` times that of the background's.
    """

    method: ClassVar[str] = "token-vectors"
    names: ClassVar = ("token-vectors",)
    summary: ClassVar = "vectors for tokens at one layer, learnt as sense finetuning's"
    learning_rate: float = 0.3
    """Of Adam, in the hidden state's own units."""
