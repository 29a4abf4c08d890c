"""The settings of ROME and R-ROME."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..documented import documented
from ..weights.config import ValueConfig


@documented
@dataclass
class RomeConfig(ValueConfig):
    """ROME (arXiv 2202.05262): the key of an edit's subject gets a new value, by a rank-one change of one layer.

    Batch 1 is the published algorithm; the edits of a larger batch find their values side by side, on the weights from
    before the batch, and are written one after the other. A subject is needed. Fields left at None are those published
    for the model's family, or ours for SmolLM2 (`defaults.py`).
    """

    method: ClassVar[str] = "rome"
    names: ClassVar = ("rome",)
    summary: ClassVar = "a rank-one change of one layer's weights an edit"
    only_solving: ClassVar = ValueConfig.only_solving | {"keys"}
    keys: Literal["prompt", "mean"] = "prompt"
    """The key that gets the value: the "prompt"'s own (ROME as published, which collapses in a stream of edits), or the
    "mean" over the contexts, which the direction of the change is made from too (R-ROME, arXiv 2403.07175)."""
