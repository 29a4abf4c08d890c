"""The settings of MEMOIR, the paper's by default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..config import EditingConfig
from ..documented import documented


@documented
@dataclass
class MemoirConfig(EditingConfig):
    """MEMOIR (arXiv 2506.07899): one residual matrix, each edit confined to the columns of its own mask.

    The defaults are the paper's. Beyond it: `eos`, `scope="causal"`, `decay`, and batches of edits that share a step
    (batch 1 is the paper's algorithm).
    """

    method: ClassVar[str] = "memoir"
    names: ClassVar = ("memoir",)
    summary: ClassVar = "one shared matrix, columns of an edit's own"
    fingerprint: ClassVar = "mask"
    stands_on_earlier: ClassVar = True
    only_solving: ClassVar = EditingConfig.only_solving | {
        *("contexts", "steps", "learning_rate", "weight_decay", "clip_norm", "stop_loss", "stop_change", "record_rank")
    }
    scope: Literal["causal", "full"] = "full"
    threshold: float | str | None = None
    """As published for the model where that is known, else calibrated as by "auto"."""
    batch_size: int = 1
    eos: bool = False
    top_k: int | None = None
    """Features a mask keeps; by default 4,096 of 14,336, and the same share elsewhere."""
    steps: int = 30
    """Most SGD steps of an edit."""
    learning_rate: float | None = None
    """1.0 as published, but for models known to want another (`defaults.py`)."""
    weight_decay: float = 1e-5
    """`W <- (1 - learning_rate * weight_decay) W` in each step."""
    decay: Literal["all", "active", "none"] = "all"
    """What weight decay acts on: "all" of the matrix (published), the "active" columns of the edit, or "none"."""
    clip_norm: float = 1.0
    """A gradient of the matrix with a larger norm is scaled down to this one."""
    stop_loss: float = 0.02
    """An edit stops early when its loss is at most this and changed by at most `stop_change`."""
    stop_change: float = 1e-4
    """See `stop_loss`."""
    contexts: int = 11
    """The prompt alone and after ten texts the model wrote itself."""
    record_rank: int | None = None
    """What is kept of an edit's update, and so written: all of it, or its best approximation of this rank."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("contexts", "steps", *(() if self.record_rank is None else ("record_rank",))):
            self._require_positive(name)
