"""The settings of WilKE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..documented import documented
from ..rome.config import RomeConfig


@documented
@dataclass
class WilkeConfig(RomeConfig):
    """WilKE (arXiv 2402.10987): ROME at whichever layer it changes least, found for each edit by trying them all.

    No values for LLaMA or Mistral are published: those left at None are ROME's for them. Batch 1 is the published
    algorithm; the edits of a larger batch are scanned side by side. A subject is needed.
    """

    method: ClassVar[str] = "wilke"
    names: ClassVar = ("wilke",)
    summary: ClassVar = "ROME at the layer that it changes least"
    layer: int | None = None
    """The last layer that is tried: half of the depth by default, as published for GPT2-XL."""
    first_layer: int = 0
    """The first layer that is tried."""
    every: int = 1
    """Every which layer is tried: 1 as published."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("every")
        self._require(self.first_layer >= 0, "first_layer", "a layer's number")
