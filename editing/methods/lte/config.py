"""The settings of LTE."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..config import is_number
from ..documented import documented
from ..rag.config import PromptConfig


@documented
@dataclass
class LteConfig(PromptConfig):
    """LTE (arXiv 2402.11905): the model is aligned once to obey a notice of updated information where it bears on the
    question and to pass over it where it does not; then the edit that is retrieved stands before the question.

    Rank, scale, dropout, rate, schedule and rounds are those of the published LoRA variant. It is trained on some
    60,000 rows in batches of 128; the set here is built from a file of edits (`alignment`), and the batch is ours.
    """

    method: ClassVar[str] = "lte"
    names: ClassVar = ("lte",)
    summary: ClassVar = "the edit's text before the question, for a model aligned to it once"
    act_on: ClassVar = "full"
    only_solving: ClassVar = PromptConfig.only_solving | {
        *(
            "alignment",
            "alignment_edits",
            "alpha",
            "dropout",
            "learning_rate",
            "rounds",
            "alignment_batch",
            "answer_tokens",
        )
    }
    scope: Literal["causal", "full"] = "full"
    form: Literal["example", "notice"] = "notice"
    mode: Literal["serving", "published"] = "serving"
    """"published": the nearest edit stands before every request, and the aligned model answers it; "serving": requests
    that the router finds no edit for are the base model's."""
    alignment: str | None = None
    """A file of edits that the alignment set is built from, of whatever form `corrigenda edit` reads; by default the
    project's own facts. They should not be those that are then written."""
    alignment_edits: int = 32
    """How many edits of it are used, four rows each."""
    rank: int = 8
    """Of the adapters that alignment trains."""
    alpha: float = 16.0
    """The adapter's output counts alpha / rank times."""
    dropout: float = 0.05
    """Share of the inputs that an adapter does not see in a step."""
    learning_rate: float = 3e-4
    """Of the alignment."""
    rounds: int = 3
    """How often each row is seen."""
    alignment_batch: int = 8
    """Rows of the alignment set in a step."""
    answer_tokens: int = 16
    """The longest answer that the model writes itself, where a record names none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        published = self.mode == "published"
        self._require(not published or self.threshold in ("auto", 0), "threshold", '0 where the mode is "published"')
        for name in ("alignment_edits", "rank", "rounds", "alignment_batch", "answer_tokens"):
            self._require_positive(name)
        for name in ("alpha", "learning_rate"):
            value = getattr(self, name)
            self._require(is_number(value) and 0 < value < math.inf, name, "a number above 0")
        self._require(is_number(self.dropout) and 0 <= self.dropout < 1, "dropout", "a number from 0, below 1")
