"""The settings of methods that change weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..config import EditingConfig, is_number


@dataclass
class WeightsConfig(EditingConfig):
    """What every method has that changes weights.

    Beyond the papers: the change is kept apart from the weights (W = W0 + sum), so that an edit can be taken out again,
    and may be gated by a router.
    """

    stands_on_earlier: ClassVar[bool] = True
    scope: Literal["causal", "full"] = "full"
    threshold: float | str | None = None
    """Of the router that gates, if there is one; "auto" by default."""
    batch_size: int = 1
    eos: bool = False
    router: Literal["none", "tokens", "meaning"] = "none"
    """"none": the weights are changed for every request, as published; else they are for requests that this router
    finds an edit for, and are the base model's for others."""
    encoder: str = "all-minilm-l6-v2"
    """For the router "meaning": the sentence encoder, as for the associative method."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.scope == "full", "scope", '"full" (weights are changed for every token)')
        gated = self.router != "none"
        self._require(gated or self.threshold is None, "threshold", 'left out where the `router` is "none"')

    @property
    def routed_by_text(self) -> bool:
        return self.router != "none"


@dataclass
class ValueConfig(WeightsConfig):
    """Settings of methods that find, by Adam, the value v* that a layer is to give for an edit's subject.

    Fields left at None are those published for the model's family, or ours for SmolLM2 (`weights/defaults.py`).
    """

    only_solving: ClassVar = WeightsConfig.only_solving | {
        *("contexts", "steps", "learning_rate", "value_decay", "clamp", "kl_weight", "stop_loss", "covariance"),
        *("eos", "seed"),
    }
    contexts: int | None = None
    """In how many contexts a value is found: the prompt alone, and after that many less one texts that the model wrote
    itself (greedily; the published code samples them, anew in each run)."""
    steps: int | None = None
    """Steps of Adam for a value; the last one only looks at the loss."""
    learning_rate: float | None = None
    """Of Adam, in the hidden state's own units: 0.5 as published."""
    value_decay: float | None = None
    """What the norm of a value's change counts beside the cross-entropy, over the squared norm of what was there."""
    clamp: float | None = None
    """The largest norm of a value's change, in norms of what was there."""
    kl_weight: float = 0.0625
    """What the drift of "{subject} is a" counts: KL from what the model said of it before."""
    stop_loss: float = 0.05
    """A value is found when its whole loss is below this."""
    covariance: str | None = None
    """The second moment of the layer's keys: "background" (of the project's own text), "none", or a file that
    `corrigenda covariance` wrote."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("contexts", "steps"):
            if getattr(self, name) is not None:
                self._require_positive(name)
        for name in ("learning_rate", "clamp"):
            value = getattr(self, name)
            self._require(value is None or (is_number(value) and 0 < value < math.inf), name, "a number above 0")
        for name in ("value_decay", "kl_weight", "stop_loss"):
            value = getattr(self, name)
            self._require(value is None or (is_number(value) and 0 <= value < math.inf), name, "a number from 0 on")
