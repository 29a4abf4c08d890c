"""The settings of AlphaEdit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..config import is_number
from ..documented import documented
from ..memit.config import SpreadConfig
from ..weights.config import ValueConfig


@documented
@dataclass
class AlphaEditConfig(SpreadConfig):
    """AlphaEdit (arXiv 2410.02355): MEMIT's batches, their changes confined to directions that other keys hardly use.

    Fields left at None are those published for the model's family, or ours for SmolLM2 (`defaults.py`). A subject is
    needed.
    """

    method: ClassVar[str] = "alphaedit"
    names: ClassVar = ("alphaedit",)
    summary: ClassVar = "MEMIT's batches in the null space of what else is known"
    only_solving: ClassVar = ValueConfig.only_solving | {"null_threshold", "ridge"}
    null_threshold: float | None = None
    """Directions of the keys' second moment with less than this are free to be changed: 0.02 as published."""
    ridge: float = 10.0
    """What the size of a change counts (L2): 10 in the authors' configurations, 1 in EasyEdit's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ridge", *(() if self.null_threshold is None else ("null_threshold",))):
            value = getattr(self, name)
            self._require(is_number(value) and 0 < value < math.inf, name, "a number above 0")
        self._require(self.covariance != "none", "covariance", '"background", or a file of `corrigenda covariance`')
