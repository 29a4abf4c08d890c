"""The settings of UltraEdit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..config import is_number
from ..documented import documented
from ..weights.config import WeightsConfig


@documented
@dataclass
class UltraEditConfig(WeightsConfig):
    """UltraEdit (arXiv 2505.14679): a batch's gradients, normalised over all edits so far, by one least-squares solve.

    No optimisation and no subject: one pass forth and back a batch. Fields left at None are those published for the
    model's family, or ours for SmolLM2 (`defaults.py`).
    """

    method: ClassVar[str] = "ultraedit"
    names: ClassVar = ("ultraedit",)
    summary: ClassVar = "a batch's normalised gradients in one solve"
    only_solving: ClassVar = WeightsConfig.only_solving | {"learning_rate", "eos"}
    batch_size: int = 100
    modules: str | None = None
    """Which linear maps change, as "down_proj:29-30" or "gate_proj:11-15,up_proj:18-24": of `mlp`, and which layers."""
    learning_rate: float | None = None
    """What a normalised gradient counts: 1e-6 as published."""
    microbatch: int = 10
    """Edits in one pass, and in one step of the running mean and deviation of keys and gradients."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("microbatch")
        rate = self.learning_rate
        self._require(rate is None or (is_number(rate) and 0 < rate < math.inf), "learning_rate", "a number above 0")
        if self.modules is not None:
            try:
                places = self.places
            except ValueError:
                places = []
            self._require(bool(places), "modules", 'as "down_proj:29-30" or "gate_proj:11-15,up_proj:18-24"')
            self._require(self.layer in (None, max(layer for layer, _ in places)), "layer", "left out (set `modules`)")

    @property
    def places(self) -> list[tuple[int, str]]:
        """The linear maps as (layer, name), ascending."""
        found = set()
        for part in (self.modules or "").split(","):
            name, _, layers = part.strip().partition(":")
            first, _, last = layers.partition("-")
            if name not in ("down_proj", "gate_proj", "up_proj"):
                raise ValueError(name)
            found |= {(layer, name) for layer in range(int(first), int(last or first) + 1)}
        return sorted(found)
