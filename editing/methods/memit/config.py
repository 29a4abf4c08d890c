"""The settings of MEMIT."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..config import is_number, is_whole
from ..documented import documented
from ..weights.config import ValueConfig


@dataclass
class SpreadConfig(ValueConfig):
    """What MEMIT has, and all that spread a batch's values over several layers as it does.

    `layer` is the last one, at whose output the values are found.
    """

    first_layer: int | None = None
    """The first of the layers whose weights change; the last is `layer`."""
    batch_size: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        first = self.first_layer
        self._require(first is None or (is_whole(first) and first >= 0), "first_layer", "a layer's number")


@documented
@dataclass
class MemitConfig(SpreadConfig):
    """MEMIT (arXiv 2210.07229): a batch of edits by least squares, spread over several layers.

    Fields left at None are those published for the model's family, or ours for SmolLM2 (`defaults.py`). A subject is
    needed.
    """

    method: ClassVar[str] = "memit"
    names: ClassVar = ("memit",)
    summary: ClassVar = "a batch by least squares over several layers' weights"
    only_solving: ClassVar = ValueConfig.only_solving | {"covariance_weight"}
    covariance_weight: float | None = None
    """What is known already counts this many keys (lambda): 15,000 as published."""

    def __post_init__(self) -> None:
        super().__post_init__()
        value = self.covariance_weight
        known = value is None or (is_number(value) and 0 < value < math.inf)
        self._require(known, "covariance_weight", "a number above 0")
        self._require(self.covariance != "none", "covariance", '"background", or a file of `corrigenda covariance`')
