"""The settings of GRACE, the published ones by default."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..config import EditingConfig, is_number
from ..documented import documented


@documented
@dataclass
class GraceConfig(EditingConfig):
    """GRACE (arXiv 2211.11031): a codebook of keys with radii, each with a value that takes the layer's output's place.

    The defaults are those of EasyEdit for LLaMA-2-7B: the value stands at the last prompt token alone
    (`replace_last`). Beyond it: `mode="serving"`, `eos`, and batches, whose values are independent problems.
    """

    method: ClassVar[str] = "grace"
    names: ClassVar = ("grace",)
    summary: ClassVar = "a key with a radius and a value for every edit"
    fingerprint: ClassVar = "key"
    stands_on_earlier: ClassVar = True  # where a key joins an earlier one, its value goes on from that one's
    only_solving: ClassVar = EditingConfig.only_solving | {"steps", "learning_rate", "start"}
    mode: Literal["serving", "published"] = "serving"
    """Who routes: "serving" decides once a sequence, by the last token of its prompt; "published" lets every token
    after that find a key of its own anew, so that an answer may lose its edit or meet another's."""
    threshold: float | str | None = None
    """Not asked for: a key answers within its radius; see `radius`."""
    eos: bool = False
    radius: float | None = None
    """A new key's radius, in the units of the layer's input: 1 as published, but for models known to want another
    (`defaults.py`)."""
    labels: Literal["mean", "tokens"] = "mean"
    """What makes two targets the same, whose keys may be joined: the "mean" of their rows' labels (published; others
    may have it by chance), or their "tokens"."""
    start: Literal["cold", "warm"] = "cold"
    """Where a value starts: "cold", uniform in [0, 1); or "warm", at the layer's own output."""
    steps: int = 50
    """Adam's steps on a value; there is no early end."""
    learning_rate: float = 1.0
    """Of Adam, in the hidden state's own units."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.scope == "causal", "scope", '"causal" (a value stands at the last prompt token)')
        self._require(self.threshold is None, "threshold", "left out (keys have a radius: set `radius`)")
        for name in ("learning_rate", *(() if self.radius is None else ("radius",))):
            value = getattr(self, name)
            self._require(is_number(value) and 0 < value < math.inf, name, "a number above 0")
        self._require_positive("steps")
