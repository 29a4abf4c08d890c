"""What an edit is: a prompt, what the model must answer to it, and what goes with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import FieldError

_KINDS = (
    (type(None), "null"),
    (bool, "true or false"),
    ((int, float), "a number"),
    (str, "text"),
    (Mapping, "an object"),
    ((list, tuple), "a list"),
)


def kind_of(value: object) -> str:
    """What `value` is, in the words of a JSON file: "a number", "a list", ..."""
    return next((name for types, name in _KINDS if isinstance(value, types)), type(value).__name__)


def required_text(name: str, value: object) -> str:
    """`value` as it is; a FieldError naming the field if it is missing, not text, or blank."""
    if value is None:
        raise FieldError(name, "is missing")
    if not isinstance(value, str):
        raise FieldError(name, f"must be text, not {kind_of(value)}")
    if not value.strip():
        raise FieldError(name, "is empty")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise FieldError(name, "holds half of a surrogate pair, which no tokenizer reads")
    return value


def optional_text(name: str, value: object) -> str | None:
    """`value` as it is, or None where it is None or blank."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return required_text(name, value)


def all_texts(name: str, value: object) -> tuple[str, ...]:
    """Every text in `value`, which is one, a list of them (at any depth) or None; blank ones are left out."""
    if isinstance(value, (list, tuple)):
        return tuple(text for i, item in enumerate(value) for text in all_texts(f"{name}[{i}]", item))
    text = optional_text(name, value)
    return () if text is None else (text,)


@dataclass(frozen=True)
class Locality:
    """A prompt on which the edit must change nothing, with its true answer if one is known."""

    prompt: str
    answer: str | None = None

    def __post_init__(self) -> None:
        required_text("prompt", self.prompt)
        object.__setattr__(self, "answer", optional_text("answer", self.answer))


@dataclass(frozen=True)
class Edit:
    """One correction: asked `prompt`, the model is to answer `target`.

    `ground_truth` holds the answers that were true before the edit, `rephrases` other wordings of the prompt
    that must get `target` too, `localities` prompts whose answers must stay, `protected` questions that this edit
    must not answer (others about its subject, say). Lists are accepted for tuples.
    """

    prompt: str
    target: str
    subject: str | None = None
    ground_truth: tuple[str, ...] = ()
    rephrases: tuple[str, ...] = ()
    localities: tuple[Locality, ...] = ()
    id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    protected: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("prompt", "target"):
            required_text(name, getattr(self, name))
        for name in ("subject", "id"):
            object.__setattr__(self, name, optional_text(name, getattr(self, name)))
        for name in ("ground_truth", "rephrases", "protected"):
            object.__setattr__(self, name, all_texts(name, getattr(self, name)))
        if not isinstance(self.localities, (list, tuple)):
            raise FieldError("localities", f"must be a list, not {kind_of(self.localities)}")
        for i, locality in enumerate(self.localities):
            if not isinstance(locality, Locality):
                raise FieldError(f"localities[{i}]", f"must be a Locality, not {kind_of(locality)}")
        object.__setattr__(self, "localities", tuple(self.localities))
        if not isinstance(self.metadata, Mapping):
            raise FieldError("metadata", f"must be an object, not {kind_of(self.metadata)}")
        object.__setattr__(self, "metadata", dict(self.metadata))

    def to_dict(self) -> dict[str, Any]:
        """The edit as JSON can hold it, for `from_dict`; `load_edits` reads files of such records too."""
        return {
            "prompt": self.prompt,
            "target": self.target,
            "subject": self.subject,
            "ground_truth": list(self.ground_truth),
            "rephrases": list(self.rephrases),
            "localities": [{"prompt": locality.prompt, "answer": locality.answer} for locality in self.localities],
            "id": self.id,
            "metadata": dict(self.metadata),
            "protected": list(self.protected),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Edit:
        """The edit that `to_dict` wrote; a field that no edit has is an error."""
        unknown = sorted(data.keys() - cls.__dataclass_fields__.keys())
        if unknown:
            raise FieldError(unknown[0], "is not a field of an edit")
        localities = [Locality(item.get("prompt"), item.get("answer")) for item in data.get("localities", ())]
        return cls(**{"prompt": None, "target": None, **data, "localities": localities})


def unique_subjects(edits: Iterable[Edit]) -> list[Edit]:
    """The first edit of each subject, in order, with every edit that names no subject."""
    seen: set[str] = set()
    kept = []
    for edit in edits:
        if edit.subject not in seen:
            kept.append(edit)
        if edit.subject is not None:
            seen.add(edit.subject)
    return kept
