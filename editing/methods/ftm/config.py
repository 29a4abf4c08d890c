"""The settings of FT-M."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..config import is_number
from ..documented import documented
from ..weights.config import WeightsConfig


@documented
@dataclass
class FtmConfig(WeightsConfig):
    """FT-M as EasyEdit has it: Adam on one layer's down-projection, by the cross-entropy of the target's tokens.

    The honest form of finetuning (its FT-L scores every target token at the last prompt position); it needs no subject.
    Edits of a batch are written one after the other. An edit's change is dense: as many bytes as the layer's weight.
    """

    method: ClassVar[str] = "ft-m"
    names: ClassVar = ("ft-m",)
    summary: ClassVar = "finetuning of one layer's weights"
    only_solving: ClassVar = WeightsConfig.only_solving | {
        *("steps", "learning_rate", "stop_loss", "norm_constraint", "record_rank", "eos")
    }
    steps: int = 25
    """The most steps of Adam for an edit."""
    learning_rate: float | None = None
    """Of Adam: 5e-4 as published."""
    stop_loss: float = 0.01
    """An edit is done when its loss is below this."""
    norm_constraint: float | None = None
    """The largest change of a weight, all edits together: 5e-5 in EasyEdit's settings for Mistral; None: none."""
    record_rank: int | None = None
    """What is kept of an edit's change, and so written: all of it, or its best approximation of this rank."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("steps")
        if self.record_rank is not None:
            self._require_positive("record_rank")
        for name in ("learning_rate", "norm_constraint"):
            value = getattr(self, name)
            self._require(value is None or (is_number(value) and 0 < value < math.inf), name, "a number above 0")
