"""The settings of a method, saved beside its edits; in the manner of transformers' and PEFT's configurations."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import CorrigendaError

CONFIG_NAME = "editing_config.json"

CONFIGS: dict[str, type[EditingConfig]] = {}
"""What `--method` may name; `registry.py` fills it."""


@dataclass
class EditingConfig:
    """What every method has. A field left at None, or "auto", is filled in for the model when it is attached."""

    method: ClassVar[str]
    """By what name the command line knows the method."""
    names: ClassVar[tuple[str, ...]]
    """Every name that `--method` may give for it."""
    summary: ClassVar[str]
    """What it is, in half a line."""
    fingerprint: ClassVar[Literal["tokens", "prompt", "mask", "key", "none"]] = "tokens"
    """What edits are known by: distinct "tokens" in order, the whole "prompt" as token ids, a "mask" of features, a
    "key" of the layer's width and a label, or "none"."""
    only_solving: ClassVar[frozenset[str]] = frozenset({"batch_size", "max_target_tokens"})
    """Settings that only the solving of an edit depends on: its record fits beside others, whatever these were."""
    unnamed: ClassVar[Mapping[str, Any]] = {}
    """What settings were, other than their defaults of now, where a folder was written before they had a name."""
    stands_on_earlier: ClassVar[bool] = False
    """Whether an edit keeps what it owes to earlier ones it was solved beside when these are undone; `undo --resolve`
    then solves it anew."""
    layer: int | None = None
    """Which layer's down-projection carries the memory; each method has its default (its `defaults.py`)."""
    scope: Literal["causal", "full"] = "causal"
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
    """Over how many background prompts the mean feature is taken; keys and fingerprints are differences to it."""
    seed: int = 42
    """Seed of whatever is random in a method."""
    contexts: int | None = 1
    """In how many contexts an edit is learnt: the prompt alone, and after that many less one texts that the model wrote
    itself."""

    def __post_init__(self) -> None:
        threshold: Any = self.threshold
        self._require(
            threshold in ("auto", None) or (is_number(threshold) and 0 <= threshold <= 1),
            "threshold",
            '"auto" or a number from 0 to 1',
        )
        for name in ("batch_size", "max_target_tokens", "background_prompts"):
            self._require_positive(name)
        self._require(self.layer is None or is_whole(self.layer), "layer", "a layer's number")
        self._check_types()

    @property
    def routed_by_text(self) -> bool:
        """Whether the text of a request is enough to find its edit: a server can then decide when it comes."""
        return False

    def _check_types(self) -> None:
        """Raise unless every setting is of a type that its annotation names: it may come from a file."""
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            hint, value = hints[field.name], getattr(self, field.name)
            kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
            modes = [mode for kind in kinds if get_origin(kind) is Literal for mode in get_args(kind)]
            types = [kind for kind in kinds if get_origin(kind) is not Literal]
            fits = value in modes if isinstance(value, str) and modes else any(_KINDS[kind][1](value) for kind in types)
            self._require(fits, field.name, _one_of([*map(json.dumps, modes), *(_KINDS[kind][0] for kind in types)]))

    def _require(self, holds: bool, name: str, wanted: str) -> None:
        if not holds:
            raise CorrigendaError(f"{type(self).__name__}: `{name}` must be {wanted}, not {getattr(self, name)!r}.")

    def _require_positive(self, name: str) -> None:
        value = getattr(self, name)
        self._require(
            is_whole(value) and value > 0,
            name,
            "a whole number above 0",
        )

    def to_dict(self) -> dict[str, Any]:
        return {"method": self.method, **dataclasses.asdict(self)}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> EditingConfig:
        """The configuration of whichever method `data["method"]` names, as `to_dict` or an earlier version wrote it."""
        fields = dict(data)
        method = fields.pop("method", None)
        if method not in CONFIGS:
            raise CorrigendaError(f"Unknown editing method {method!r}: use one of {', '.join(CONFIGS)}.")
        kind = CONFIGS[method]
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(kind)})
        if unknown:
            raise CorrigendaError(f"{kind.__name__} has no setting `{unknown[0]}`; it was written by another version.")
        return kind.named(method, **{**kind.unnamed, **fields})

    @classmethod
    def named(cls, name: str, **settings: Any) -> EditingConfig:
        """The configuration that one of `names` stands for."""
        return cls(**settings)

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


def is_number(value: object) -> bool:
    """Infinity is one; a whole number that no float is near is none."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return value == value and (isinstance(value, float) or abs(value) <= sys.float_info.max)


def is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _one_of(wanted: Sequence[str]) -> str:
    """The names of what may stand there, in words."""
    return " or ".join(filter(None, [", ".join(wanted[:-1]), wanted[-1]]))


_KINDS: dict[type, tuple[str, Callable[[object], bool]]] = {
    int: ("a whole number", is_whole),
    float: ("a number", is_number),
    str: ("text", lambda value: isinstance(value, str)),
    bool: ("True or False", lambda value: isinstance(value, bool)),
    type(None): ("None", lambda value: value is None),
}
"""By the types of annotations: what to call them, and which values are of them."""
