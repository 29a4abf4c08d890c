"""The settings of CoachHooK."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..config import is_number
from ..documented import documented
from ..memit.config import SpreadConfig
from ..weights.config import ValueConfig


@documented
@dataclass
class CoachHookConfig(SpreadConfig):
    """CoachHooK (COMEBA-HK, arXiv 2403.05330): changed weights that answer only where they stand out.

    MEMIT's batches on hooked layers, held back by the keys of all earlier edits; a token takes a hook's output where
    that differs from the layer's own by more than is usual in its sequence. No values for LLaMA or Mistral are
    published: those left at None are MEMIT's for them. A subject is needed.
    """

    method: ClassVar[str] = "coachhook"
    names: ClassVar = ("coachhook",)
    summary: ClassVar = "MEMIT's batches on hooked layers that answer where they stand out"
    only_solving: ClassVar = ValueConfig.only_solving | {"covariance_weight"}
    router: Literal["none"] = "none"
    """Hooks decide themselves."""
    mode: Literal["serving", "published"] = "serving"
    """Against what a change stands out: "serving", the tokens of the prompt, whose mean and deviation stay with the
    sequence; "published", all tokens of the row that passes, padding too, where a single generated token never does."""
    batch_size: int = 30
    covariance_weight: float | None = None
    """What is known already counts this many keys: 15,000 as published."""
    alpha: float = 2.2
    """From how many deviations above the mean of its sequence a change answers, to begin with."""
    falls: bool = True
    """Whether that falls to the least by which an edit's own prompt stood out after its batch, as published."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", *(() if self.covariance_weight is None else ("covariance_weight",))):
            value = getattr(self, name)
            self._require(is_number(value) and 0 < value < math.inf, name, "a number above 0")
        self._require(self.router == "none", "router", '"none" (hooks decide themselves)')
        self._require(self.covariance != "none", "covariance", '"background", or a file of `corrigenda covariance`')
