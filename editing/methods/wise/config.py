"""The settings of WISE."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..config import EditingConfig, is_number
from ..documented import documented


@documented
@dataclass
class WiseConfig(EditingConfig):
    """WISE (arXiv 2405.14768): side memories, each edit under a random gradient mask, and a margin that routes.

    Where the paper and its published code part, the option's text says which is which. Beyond both: `eos`, decisions
    made once a sequence, and batches of edits that share a step (batch 1 is the published algorithm). Fields left at
    None are those published for the model, or tuned for SmolLM2 (`defaults.py`).
    """

    names: ClassVar = ("wise-merge", "wise-retrieve")
    summary: ClassVar = "side memories, merged or chosen from"
    fingerprint: ClassVar = "prompt"
    stands_on_earlier: ClassVar = True
    scope: Literal["causal", "full"] = "full"
    threshold: float | str | None = None
    """Not asked for: WISE learns its thresholds; see `act_ratio`."""
    batch_size: int = 1
    eos: bool = False
    variant: Literal["merge", "retrieve"] = "merge"
    """"merge": finished shards become one memory; "retrieve": the best of several memories answers."""
    steps: int | None = None
    """Most SGD steps of an edit: 70 as published."""
    learning_rate: float | None = None
    """1.0 as published for most models."""
    weight_decay: float = 1e-5
    """`W <- (1 - learning_rate * weight_decay) W` in each step, on what `decay` names."""
    decay: Literal["all", "masked", "none"] = "none"
    """What weight decay shrinks: "all" of the side weight, frozen part included (the code), the "masked" entries
    alone, or "none" (the paper)."""
    norm_constraint: float = 1.0
    """The largest difference to a frozen weight."""
    mask_ratio: float | None = None
    """Share of a shard's entries that its edits may write (rho)."""
    alpha: float | None = None
    """Margin loss: `max(0, d_irrelevant - alpha)`; the distance of an irrelevant prompt is to stay below alpha."""
    beta: float | None = None
    """Margin loss: `max(0, beta - d_edit)`; the distance of the edit's prompt is to exceed beta."""
    gamma: float | None = None
    """Margin loss: `max(0, gamma - (d_edit - d_irrelevant))`; the difference of the two is to exceed gamma."""
    margin_weight: float | None = None
    """What the margin loss counts beside the cross-entropy: 1 as published."""
    irrelevant_prompts: int | None = None
    """How many irrelevant prompts take part in an edit's margin loss, each edit's own: 1 as published."""
    spared: float | None = None
    """An update along a direction of the inputs is divided by `1 + spared * use`, where `use` is how much background
    prompts use that direction, 1 for the mean of all directions. 0 as published: nothing is spared."""
    background_prompts: int = 400
    """How many background prompts tell of that use, and of `threshold_from`."""
    distance: Literal["raw", "activated"] = "activated"
    """What is measured of an output: its change "raw" (the paper), or after the model's "activated" form (the code)."""
    distance_tokens: Literal["row", "prompt"] | None = None
    """Over which tokens an edit's distance is taken in training: the whole "row" (published), or the "prompt"."""
    reduction: Literal["published", "mean", "max"] | None = None
    """A prompt's distance where it is routed: "published" (mean over tokens, maximum beyond 100 of them), or always the
    "mean" or the "max"."""
    threshold_from: Literal["edits", "background"] | None = None
    """What the distance from which a memory answers is taken from: the smallest at which one of its "edits" was left
    (published), or what a hundredth of the "background" prompts exceed in that memory."""
    act_ratio: float | None = None
    """A memory answers from this share of that distance."""
    save_every: int = 500
    """Edits in a shard."""
    merge_every: int | None = 1000
    """Edits after which shards are merged, a multiple of `save_every`; None: never."""
    merge: Literal["ties", "linear", "magnitude", "sign", "dare", "dare_ties", "slerp"] = "ties"
    """How shards become one (`memories/merging.py`)."""
    merge_density: float = 0.53
    """Share of a shard's entries that "ties", "magnitude" and "dare" keep."""
    merge_scale: float | None = None
    """By how much merged differences are multiplied (the lambda of TIES, arXiv 2306.01708): 1 as published. A mean of
    shards gives every edit less than its own shard did."""
    disjoint_masks: bool = False
    """Whether shards that are merged together write entries of their own: of g such shards, each those entries whose
    random number is in its g-th part, `mask_ratio` of all at most. TIES then has no conflict among them."""
    merged_weight: float = 0.6
    """For "merge": the weight of what was merged before; the new shards share the rest."""
    record_rank: int | None = None
    """What is kept of an edit's update, and so written: all of it, or its best approximation of this rank."""
    replay: bool = False
    """For "retrieve": whether an earlier edit of every shard takes part in the margin loss of each new one."""
    stop_loss: float = 0.02
    """An edit stops early when its loss, margin included, is at most this and changed by at most `stop_change`."""
    stop_change: float = 1e-4
    """See `stop_loss`."""
    contexts: int | None = None
    """The prompt alone and after that many less one texts the model wrote itself: 11 as published."""

    @property
    def method(self) -> str:  # type: ignore[override] # one configuration, two names
        return f"wise-{self.variant}"

    @classmethod
    def named(cls, name: str, **settings: Any) -> EditingConfig:
        return cls(**{**settings, "variant": name.removeprefix("wise-")})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.scope == "full", "scope", '"full" (the distance that routes is the whole prompt\'s)')
        self._require(self.threshold is None, "threshold", "left out (WISE learns its own: set `act_ratio`)")
        for name in ("mask_ratio", "merge_density"):
            self._require(getattr(self, name) is None or 0 < getattr(self, name) <= 1, name, "above 0 and at most 1")
        for name in ("margin_weight", "spared"):
            value = getattr(self, name)
            self._require(value is None or (is_number(value) and value >= 0), name, "a number from 0 on")
        scale = self.merge_scale
        self._require(scale is None or (is_number(scale) and 0 < scale < math.inf), "merge_scale", "a number above 0")
        self._require_positive("save_every")
        for name in ("contexts", "steps", "record_rank", "irrelevant_prompts"):
            if getattr(self, name) is not None:
                self._require_positive(name)
        self._require(not self.replay or self.variant == "retrieve", "replay", 'False for "merge"')
        mergeless = self.merge_every is None
        self._require(not (self.disjoint_masks and mergeless), "disjoint_masks", "False where nothing is merged")
        if self.merge_every is not None:
            self._require_positive("merge_every")
            self._require(self.merge_every % self.save_every == 0, "merge_every", "a multiple of `save_every`, or None")
