"""The settings of MELO."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..config import EditingConfig, is_number
from ..documented import documented


@documented
@dataclass
class MeloConfig(EditingConfig):
    """MELO (arXiv 2312.11795): LoRA blocks, chosen by a cluster index on an earlier layer.

    The edits of a batch share a block, as published; with `batch_size=1` each has its own, and taking one out is exact.
    Published are values for GPT2-XL, T5 and BERT alone: places are at their shares of the depth, rank, steps and rates
    are GPT2-XL's, and radius and scale ours (`defaults.py`).
    """

    method: ClassVar[str] = "melo"
    names: ClassVar = ("melo",)
    summary: ClassVar = "LoRA blocks, chosen by clusters of keys"
    fingerprint: ClassVar = "key"
    only_solving: ClassVar = EditingConfig.only_solving | {"steps", "learning_rate", "halve_every"}
    mode: Literal["serving", "published"] = "serving"
    """Who routes: "serving" decides once a sequence, by the last token of its prompt. "published": the key of a stored
    edit is that of the last token of its prompt and label, which has seen the answer; and each generated token finds
    a block of its own."""
    scope: Literal["causal", "full"] = "full"
    layer: int | None = None
    """The router's: keys are what its `mlp.up_proj` puts out. Adapters are on the same map of the layers above."""
    threshold: float | str | None = None
    """Not asked for: clusters have radii; see `radius`."""
    batch_size: int = 4
    """How many edits share a block."""
    eos: bool = False
    radius: float | None = None
    """A new cluster's radius, in the units of the keys."""
    labels: Literal["sum", "tokens"] = "sum"
    """What makes two targets the same, whose keys join: the "sum" of their token ids (published; others may have it by
    chance), or the "tokens" themselves."""
    adapted_layers: int = 2
    """How many layers above the router's carry adapters."""
    rank: int = 2
    """Of a block."""
    scale: float | None = None
    """What a block's output counts. As published it is the number of blocks there is room for: 350, 20 or 100."""
    steps: int = 50
    """Adam's, on a block."""
    learning_rate: float = 1e-3
    """Of Adam, before it is halved."""
    halve_every: int = 30
    """Steps after which the learning rate is halved."""

    @property
    def stands_on_earlier(self) -> bool:  # type: ignore[override] # an edit with a block of its own does not
        return self.batch_size > 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.scope == "full", "scope", '"full" (a block acts on the whole prompt)')
        self._require(self.threshold is None, "threshold", "left out (clusters have a radius: set `radius`)")
        for name in ("learning_rate", *(name for name in ("radius", "scale") if getattr(self, name) is not None)):
            value = getattr(self, name)
            self._require(is_number(value) and 0 < value < math.inf, name, "a number above 0")
        for name in ("steps", "rank", "halve_every", "adapted_layers"):
            self._require_positive(name)
