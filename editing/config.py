"""The settings of a method, saved beside its edits; in the manner of transformers' and PEFT's configurations."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from .errors import CorrigendaError

CONFIG_NAME = "editing_config.json"


@dataclass
class EditingConfig:
    """What every method has. A field left at None, or "auto", is filled in for the model when it is attached."""

    method: ClassVar[str]
    """By what name the command line knows the method."""
    only_solving: ClassVar[frozenset[str]] = frozenset({"batch_size", "max_target_tokens"})
    """Settings that only the solving of an edit depends on: its record fits beside others, whatever these were."""
    layer: int | None = None
    """Which layer's down-projection carries the memory; each method has its default (`defaults.py`)."""
    scope: str = "causal"
    """Where the memory acts: "causal" from the last prompt token on, "full" on the whole prompt too."""
    threshold: float | str | None = "auto"
    """The score from which a prompt counts as an edit's; "auto": above what background prompts reach, for rare tokens
    within .40 and .45."""
    batch_size: int = 16
    """How many edits are written at a time."""
    eos: bool = True
    """Whether the end-of-sequence token is part of every target, so that a generated answer stops where it should."""
    max_target_tokens: int = 504
    """The longest target that is taken; a longer one is refused by name."""
    background_prompts: int = 100
    """Over how many background prompts the mean feature is taken that keys and fingerprints are less."""
    seed: int = 42

    def __post_init__(self) -> None:
        self._require(self.scope in ("causal", "full"), "scope", '"causal" or "full"')
        self._require(
            self.threshold in ("auto", None) or (_is_number(self.threshold) and 0 <= self.threshold <= 1),
            "threshold",
            '"auto" or a number from 0 to 1',
        )
        for name in ("batch_size", "max_target_tokens", "background_prompts"):
            self._require_positive(name)
        self._require(self.layer is None or _is_whole(self.layer), "layer", "a layer's number")
        self._check_types()

    def _check_types(self) -> None:
        """Raise unless every setting is of a type that its annotation names: it may come from a file."""
        for field in dataclasses.fields(self):
            kinds = str(field.type).split(" | ")
            fits = any(_KINDS[kind][1](getattr(self, field.name)) for kind in kinds)
            self._require(fits, field.name, " or ".join(_KINDS[kind][0] for kind in kinds))

    def _require(self, holds: bool, name: str, wanted: str) -> None:
        if not holds:
            raise CorrigendaError(f"{type(self).__name__}: `{name}` must be {wanted}, not {getattr(self, name)!r}.")

    def _require_positive(self, name: str) -> None:
        value = getattr(self, name)
        self._require(
            _is_whole(value) and value > 0,
            name,
            "a whole number above 0",
        )

    def to_dict(self) -> dict[str, Any]:
        return {"method": self.method, **dataclasses.asdict(self)}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> EditingConfig:
        """The configuration of whichever method `data["method"]` names."""
        fields = dict(data)
        method = fields.pop("method", None)
        if method not in CONFIGS:
            raise CorrigendaError(f"Unknown editing method {method!r}: use one of {', '.join(CONFIGS)}.")
        kind = CONFIGS[method]
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(kind)})
        if unknown:
            raise CorrigendaError(f"{kind.__name__} has no setting `{unknown[0]}`; it was written by another version.")
        return config_for(method, **fields)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `editing_config.json` into `directory`."""
        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        (path / CONFIG_NAME).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> EditingConfig:
        """Read `editing_config.json`, of any method."""
        path = Path(directory) / CONFIG_NAME
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CorrigendaError(f"{path} does not exist: {directory} holds no saved edits.") from None
        except (OSError, ValueError) as error:
            raise CorrigendaError(f"{path} cannot be read: {error}.") from None
        if not isinstance(data, dict):
            raise CorrigendaError(f"{path} must hold a JSON object.")
        return cls.from_dict(data)


@dataclass
class AssociativeConfig(EditingConfig):
    """Each edit's own key/value rows, read by softmax; nothing is shared, so nothing is forgotten."""

    method: ClassVar[str] = "associative"
    only_solving: ClassVar = EditingConfig.only_solving | {
        *("contexts", "steps", "learning_rate", "adam_beta1", "adam_beta2", "stop_loss", "gain")
    }
    router: str = "tokens"
    """What names the edit: "tokens" (rare tokens in common) or "mask" (overlap of activation masks)."""
    router_layer: int | None = None
    """For "mask": the layer whose features are the fingerprint; by default an eighth up, where words still show."""
    top_k: int | None = None
    """For "mask": how many features a fingerprint keeps."""
    beta: float = 10.0
    """Sharpness of the read: `softmax(beta * keys . x)`."""
    contexts: int = 4
    """In how many contexts an edit is learnt: alone, and after that many less one texts the model wrote itself."""
    steps: int = 20
    learning_rate: float = 0.5
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    stop_loss: float = 0.02
    """An edit is done when its mean cross-entropy is this low."""
    gain: float = 2.0
    """By how much values are then multiplied, where the edit's loss is no higher for it; 1: not at all. An answer that
    has only just won where it was learnt loses in other words: after 500 edits of CounterFact Gen is .85 with 1, .95
    with 1.5 and .96 with 2, where .97 of the rephrasings are routed, and Loc .97 with each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.scope == "causal", "scope", '"causal" (an edit\'s rows are answer positions)')
        self._require(self.router in ("tokens", "mask"), "router", '"tokens" or "mask"')
        self._require(_is_number(self.gain) and 1 <= self.gain < math.inf, "gain", "a number from 1 on")
        for name in ("contexts", "steps"):
            self._require_positive(name)


@dataclass
class MemoirConfig(EditingConfig):
    """MEMOIR (arXiv 2506.07899): one residual matrix, each edit confined to the columns of its own mask.

    The defaults are the paper's. Beyond it: `eos`, `scope="causal"`, `decay`, and batches of edits that share a step
    (batch 1 is the paper's algorithm).
    """

    method: ClassVar[str] = "memoir"
    only_solving: ClassVar = EditingConfig.only_solving | {
        *("contexts", "steps", "learning_rate", "weight_decay", "clip_norm", "stop_loss", "stop_change", "record_rank")
    }
    scope: str = "full"
    threshold: float | str | None = None
    """As published for the model where that is known, else calibrated as by "auto"."""
    batch_size: int = 1
    eos: bool = False
    top_k: int | None = None
    """Features a mask keeps; by default 4,096 of 14,336, and the same share elsewhere."""
    steps: int = 30
    learning_rate: float | None = None
    """1.0 as published, but for models known to want another (`defaults.py`)."""
    weight_decay: float = 1e-5
    decay: str = "all"
    """What weight decay acts on: "all" of the matrix (published), the "active" columns of the edit, or "none"."""
    clip_norm: float = 1.0
    stop_loss: float = 0.02
    stop_change: float = 1e-4
    """An edit stops early when the loss is at most `stop_loss` and changed by at most this."""
    contexts: int = 11
    """The prompt alone and after ten texts the model wrote itself."""
    record_rank: int | None = None
    """What is kept of an edit's update, and so written: all of it, or its best approximation of this rank."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.decay in ("all", "active", "none"), "decay", '"all", "active" or "none"')
        for name in ("contexts", "steps", *(() if self.record_rank is None else ("record_rank",))):
            self._require_positive(name)


@dataclass
class WiseConfig(EditingConfig):
    """WISE (arXiv 2405.14768): side memories, each edit under a random gradient mask, and a margin that routes.

    Where the paper and its published code part, the option's text says which is which. Beyond both: `eos`, decisions
    made once a sequence, and batches of edits that share a step (batch 1 is the published algorithm). Fields left at
    None are those published for the model, or tuned for SmolLM2 (`defaults.py`).
    """

    scope: str = "full"
    threshold: float | str | None = None
    """Not asked for: WISE learns its thresholds; see `act_ratio`."""
    batch_size: int = 1
    eos: bool = False
    variant: str = "merge"
    """"merge": finished shards become one memory; "retrieve": the best of several memories answers."""
    steps: int | None = None
    learning_rate: float | None = None
    weight_decay: float = 1e-5
    decay: str = "none"
    """What weight decay shrinks: "all" of the side weight, frozen part included (the code), the "masked" entries
    alone, or "none" (the paper)."""
    norm_constraint: float = 1.0
    """The largest difference to a frozen weight."""
    mask_ratio: float | None = None
    """Share of a shard's entries that its edits may write (rho)."""
    alpha: float | None = None
    """The margin loss asks of the irrelevant prompt's distance to stay below alpha,"""
    beta: float | None = None
    """of the edit's to exceed beta,"""
    gamma: float | None = None
    """and of their difference to exceed gamma."""
    margin_weight: float | None = None
    """What the margin loss counts beside the cross-entropy: 1 as published."""
    irrelevant_prompts: int | None = None
    """How many irrelevant prompts take part in an edit's margin loss, each edit's own: 1 as published."""
    spared: float | None = None
    """How much less an edit writes along a direction of the inputs that background prompts use as much as the mean of
    all directions: by 1 + this, and along others in proportion to their use; 0, for none, as published."""
    background_prompts: int = 400
    """How many background prompts tell of that use, and of `threshold_from`."""
    distance: str = "activated"
    """What is measured of an output: its change "raw" (the paper), or after the model's "activated" form (the code)."""
    distance_tokens: str | None = None
    """Over which tokens an edit's distance is taken in training: the whole "row" (published), or the "prompt"."""
    reduction: str | None = None
    """A prompt's distance where it is routed: "published" (mean over tokens, maximum beyond 100 of them), or always the
    "mean" or the "max"."""
    threshold_from: str | None = None
    """What the distance from which a memory answers is taken from: the smallest at which one of its "edits" was left
    (published), or what a hundredth of the "background" prompts exceed in that memory."""
    act_ratio: float | None = None
    """A memory answers from this share of that distance."""
    save_every: int = 500
    """Edits in a shard."""
    merge_every: int | None = 1000
    """Edits after which shards are merged, a multiple of `save_every`; None: never."""
    merge: str = "ties"
    """"ties", "linear", "magnitude", "sign", "dare", "dare_ties" or "slerp"."""
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
    stop_change: float = 1e-4
    """An edit stops early when its loss, margin included, is at most `stop_loss` and changed by at most this."""
    contexts: int | None = None
    """The prompt alone and after that many less one texts the model wrote itself: 11 as published."""

    @property
    def method(self) -> str:
        return f"wise-{self.variant}"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.variant in ("merge", "retrieve"), "variant", '"merge" or "retrieve"')
        self._require(self.scope == "full", "scope", '"full" (the distance that routes is the whole prompt\'s)')
        self._require(self.threshold is None, "threshold", "left out (WISE learns its own: set `act_ratio`)")
        self._require(self.decay in ("all", "masked", "none"), "decay", '"all", "masked" or "none"')
        self._require(self.distance in ("raw", "activated"), "distance", '"raw" or "activated"')
        self._require(self.distance_tokens in ("row", "prompt", None), "distance_tokens", '"row" or "prompt"')
        self._require(self.reduction in ("published", "mean", "max", None), "reduction", '"published", "mean" or "max"')
        known = self.threshold_from in ("edits", "background", None)
        self._require(known, "threshold_from", '"edits" or "background"')
        self._require(self.merge in MERGES, "merge", f"one of {', '.join(MERGES)}")
        for name in ("mask_ratio", "merge_density"):
            self._require(getattr(self, name) is None or 0 < getattr(self, name) <= 1, name, "above 0 and at most 1")
        for name in ("margin_weight", "spared"):
            value = getattr(self, name)
            self._require(value is None or (_is_number(value) and value >= 0), name, "a number from 0 on")
        scale = self.merge_scale
        self._require(scale is None or (_is_number(scale) and 0 < scale < math.inf), "merge_scale", "a number above 0")
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


MERGES = ("ties", "linear", "magnitude", "sign", "dare", "dare_ties", "slerp")

CONFIGS: dict[str, type[EditingConfig]] = {
    "associative": AssociativeConfig,
    "memoir": MemoirConfig,
    "wise-merge": WiseConfig,
    "wise-retrieve": WiseConfig,
}
"""What `--method` may name."""


def config_for(method: str, **settings: Any) -> EditingConfig:
    """The configuration that `--method` names."""
    if method not in CONFIGS:
        raise CorrigendaError(f'Unknown editing method "{method}": use one of {", ".join(CONFIGS)}.')
    kind = CONFIGS[method]
    if kind is WiseConfig:
        settings["variant"] = method.removeprefix("wise-")
    return kind(**settings)


def _is_number(value: object) -> bool:
    """Infinity is one; a whole number that no float is near is none."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return value == value and (isinstance(value, float) or abs(value) <= sys.float_info.max)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


_KINDS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "int": ("a whole number", _is_whole),
    "float": ("a number", _is_number),
    "str": ("text", lambda value: isinstance(value, str)),
    "bool": ("True or False", lambda value: isinstance(value, bool)),
    "None": ("None", lambda value: value is None),
}
"""By the names of types in annotations: what to call them, and which values are of them."""
