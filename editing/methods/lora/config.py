"""The settings of LoRA."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..config import is_number
from ..documented import documented
from ..weights.config import WeightsConfig


@dataclass
class AdapterConfig(WeightsConfig):
    """What every method has that learns low-rank adapters by PEFT."""

    only_solving: ClassVar = WeightsConfig.only_solving | {
        *("rank", "alpha", "dropout", "learning_rate", "steps", "stop_loss", "eos", "seed")
    }
    modules: str = "q_proj,v_proj"
    """The linear maps of every layer that get an adapter, by their names."""
    rank: int = 8
    """Of an edit's adapter."""
    alpha: float = 32.0
    """The adapter's output counts alpha / rank times."""
    dropout: float = 0.1
    """Share of the inputs that an adapter does not see in a step."""
    learning_rate: float = 5e-3
    """Of AdamW, without weight decay."""
    steps: int = 70
    """Of AdamW, on an edit's adapter."""
    stop_loss: float = 0.0
    """Learning ends when a step's loss is at most this; 0 as published: it does not."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rank", "steps"):
            self._require_positive(name)
        for name in ("alpha", "learning_rate"):
            value = getattr(self, name)
            self._require(is_number(value) and 0 < value < math.inf, name, "a number above 0")
        self._require(is_number(self.dropout) and 0 <= self.dropout < 1, "dropout", "a number from 0, below 1")
        self._require(is_number(self.stop_loss) and self.stop_loss >= 0, "stop_loss", "a number from 0 on")


@documented
@dataclass
class LoraConfig(AdapterConfig):
    """LoRA (arXiv 2106.09685) as editors compare with it: each edit's own adapter of all attention layers, by PEFT.

    Rank, scale, dropout, steps and rate are EasyEdit's, whose adapter is AdaLoRA's, its ranks never changed, and is
    trained on from edit to edit. Here every edit has one of its own, learnt beside those before it.
    """

    method: ClassVar[str] = "lora"
    names: ClassVar = ("lora",)
    summary: ClassVar = "a low-rank adapter of all attention layers an edit, always on"
