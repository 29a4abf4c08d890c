"""The settings of the associative method."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..config import EditingConfig, is_number
from ..documented import documented


@documented
@dataclass
class AssociativeConfig(EditingConfig):
    """Each edit's own key/value rows, read by softmax; nothing is shared, so nothing is forgotten."""

    method: ClassVar[str] = "associative"
    names: ClassVar = ("associative",)
    summary: ClassVar = "rows of its own for every edit"
    only_solving: ClassVar = EditingConfig.only_solving | {
        *("contexts", "steps", "learning_rate", "adam_beta1", "adam_beta2", "stop_loss", "gain")
    }
    router: Literal["tokens", "mask"] = "tokens"
    """What names the edit: "tokens" (rare tokens in common) or "mask" (overlap of activation masks)."""
    router_layer: int | None = None
    """For "mask": the layer whose features are the fingerprint; by default an eighth up, where words still show."""
    top_k: int | None = None
    """For "mask": how many features a fingerprint keeps."""
    beta: float = 10.0
    """Sharpness of the read: `softmax(beta * keys . x)`."""
    contexts: int = 4
    steps: int = 20
    learning_rate: float = 0.5
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    stop_loss: float = 0.02
    """An edit is done when its mean cross-entropy is this low."""
    gain: float = 2.0
    """By how much values are then multiplied, where the edit's loss is no higher for it; 1: not at all. An answer that
    has only just won where it was learnt loses in other words: after 500 edits of CounterFact Gen is .85 with 1, .95
    with 1.5 and .96 with 2, where .97 of the rephrasings are routed, and Loc .97 with each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.scope == "causal", "scope", '"causal" (an edit\'s rows are answer positions)')
        self._require(is_number(self.beta) and 0 < self.beta < math.inf, "beta", "a number above 0")
        self._require(is_number(self.gain) and 1 <= self.gain < math.inf, "gain", "a number from 1 on")
        for name in ("contexts", "steps"):
            self._require_positive(name)

    @property
    def routed_by_text(self) -> bool:
        return self.router == "tokens"
