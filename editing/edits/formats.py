"""The formats of records of edits: our own, and those of the field's benchmarks as they are published."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ..errors import FieldError
from .edit import Edit, Locality, all_texts, kind_of, optional_text, required_text

TARGETS = "target_new", "target"
"""What records that have a `prompt` call their target: benchmarks mostly the first, our own files the second."""


class RecordFields:
    """The fields of one record, taken by name; a field that nobody takes is kept as metadata."""

    def __init__(self, record: Mapping[str, Any], prefix: str = "") -> None:
        self._left = dict(record)
        self._prefix = prefix
        self._objects: dict[str, RecordFields] = {}

    def _take(self, *names: str) -> tuple[str, Any]:
        """Name and value of the first of `names` that is filled in, else of one that is empty or missing."""
        found = (self._prefix + names[0], None)
        for name in names:
            if name in self._left:
                found = (self._prefix + name, self._left.pop(name))
                if found[1] not in (None, "", []):
                    break
        return found

    def text(self, *names: str) -> str:
        """The text that one of `names` must hold."""
        return required_text(*self._take(*names))

    def optional_text(self, *names: str) -> str | None:
        """The text in the first of `names` that holds one."""
        return optional_text(*self._take(*names))

    def texts(self, *names: str) -> tuple[str, ...]:
        """All texts in all fields of `names`, each of which may hold one text or a list."""
        return tuple(text for name in names for text in all_texts(*self._take(name)))

    def first_text(self, *names: str) -> str | None:
        """The first text in the first of `names` that is filled in: benchmarks list several right answers."""
        return next(iter(all_texts(*self._take(*names))), None)

    def identifier(self, *names: str) -> str | None:
        """A record's name, which may be a whole number."""
        name, value = self._take(*names)
        return str(value) if type(value) is int else optional_text(name, value)

    def object(self, name: str) -> RecordFields:
        """The fields of the object in the field `name`; none if it is missing."""
        path, value = self._take(name)
        if value is not None and not isinstance(value, Mapping):
            raise FieldError(path, f"must be an object, not {kind_of(value)}")
        return self._objects.setdefault(name, RecordFields(value or {}, prefix=f"{path}."))

    def locality(self, prompt_name: str, *answer_names: str) -> tuple[Locality, ...]:
        """The locality whose prompt and answer are fields of the record; none if there is no prompt."""
        prompt, answer = self.optional_text(prompt_name), self.first_text(*answer_names)
        return () if prompt is None else (Locality(prompt, answer),)

    def localities(self, name: str, answer: str | None = None) -> tuple[Locality, ...]:
        """The localities listed in the field `name`; `answer` goes with those that are only a prompt."""
        return tuple(_localities(*self._take(name), answer))

    def left(self) -> dict[str, Any]:
        """What was not taken, in the place it has in the record."""
        nested = {name: fields.left() for name, fields in self._objects.items()}
        return self._left | {name: values for name, values in nested.items() if values}


def _localities(name: str, value: object, answer: str | None) -> Iterator[Locality]:
    if isinstance(value, Mapping):  # KnowEdit groups its localities by kind.
        for kind, items in value.items():
            yield from _localities(f"{name}.{kind}", items, answer)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            if isinstance(item, Mapping):
                fields = RecordFields(item, prefix=f"{name}[{i}].")
                names = ("loc", "prompt") if "loc_ans" in item else ("prompt", "loc")  # as it is spelt here
                yield Locality(fields.text(*names), fields.first_text("answer", "ground_truth", "loc_ans"))
            else:
                yield from (Locality(prompt, answer) for prompt in all_texts(f"{name}[{i}]", item))
    elif value not in (None, ""):
        raise FieldError(name, f"must be a list, not {kind_of(value)}")


def _read_rome(fields: RecordFields) -> dict[str, Any]:
    """CounterFact of ROME. Its neighbourhood prompts are other subjects for which the true answer holds."""
    rewrite = fields.object("requested_rewrite")
    prompt, subject = rewrite.text("prompt"), rewrite.text("subject")
    true_answers = rewrite.object("target_true").texts("str")
    return {
        "prompt": prompt.replace("{}", subject),
        "target": rewrite.object("target_new").text("str"),
        "subject": subject,
        "ground_truth": true_answers,
        "rephrases": fields.texts("paraphrase_prompts"),
        "localities": fields.localities("neighborhood_prompts", answer=next(iter(true_answers), None)),
    }


def _read_prompt_record(fields: RecordFields) -> dict[str, Any]:
    """Our own JSON Lines, EasyEdit, KnowEdit and QAEdit: they differ in the names of the optional fields."""
    return {
        "prompt": fields.text("prompt"),
        "target": fields.text(*TARGETS),
        "subject": fields.optional_text("subject"),
        "ground_truth": fields.texts("ground_truth"),
        "rephrases": fields.texts("rephrase", "rephrases", "rephrase_prompt"),
        "localities": fields.locality("locality_prompt", "locality_answer", "locality_ground_truth")
        + fields.localities("localities")
        + fields.localities("locality"),
    }


def _read_mend(fields: RecordFields) -> dict[str, Any]:
    """ZsRE of MEND and WISE. The edit is to the counterfactual answer `alt`; `answers` are the true ones."""
    return {
        "prompt": fields.text("src"),
        "target": fields.text("alt"),
        "subject": fields.optional_text("subject"),
        "ground_truth": fields.texts("answers"),
        "rephrases": fields.texts("rephrase"),
        "localities": fields.locality("loc", "loc_ans"),
    }


def _read_wikibio(fields: RecordFields) -> dict[str, Any]:
    """WikiBio of KnowEdit: a passage about `concept` so far, and its true next sentence."""
    return {
        "prompt": fields.text("text"),
        "target": fields.text("labels"),
        "subject": fields.optional_text("concept"),
        "localities": fields.localities("locality"),
    }


class Format(NamedTuple):
    """A form of records: the fields that mark it (any one of them does), and its reader."""

    marks: tuple[str, ...]
    read: Callable[[RecordFields], dict[str, Any]]

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Whether `record` is of this form."""
        return any(mark in record for mark in self.marks)


FORMATS = (
    Format(("requested_rewrite",), _read_rome),
    Format(("prompt",), _read_prompt_record),
    Format(("src", "alt"), _read_mend),
    Format(("labels", "concept"), _read_wikibio),
)


def edit_from(record: Mapping[str, Any], default_id: str) -> Edit:
    """The edit that a record describes, whatever its format; a FieldError names what is wrong with it."""
    read = next((form.read for form in FORMATS if form.matches(record)), _read_prompt_record)
    fields = RecordFields(record)
    values = read(fields)
    identifier = fields.identifier("id", "case_id") or default_id
    protected = fields.texts("protected")
    saved = fields.object("metadata").left()  # A record of Edit.to_dict has its metadata in one field.
    left = {name: value for name, value in fields.left().items() if name != "metadata"}
    _check_storable("", left)
    _check_storable("metadata", saved)
    return Edit(**values, id=identifier, metadata=saved | left, protected=protected)


def _check_storable(name: str, value: Any) -> None:
    """Raise where a field that is only kept holds what no ledger can: its checksums are of strict JSON in UTF-8."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            shown = key.encode("utf-8", "backslashreplace").decode()
            path = f"{name}.{shown}" if name else shown
            if shown != key:
                raise FieldError(path, "has half of a surrogate pair in its name")
            _check_storable(path, item)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _check_storable(f"{name}[{i}]", item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise FieldError(name, "must be a finite number")
    elif isinstance(value, str) and value.encode("utf-8", "replace").decode() != value:
        raise FieldError(name, "holds half of a surrogate pair, which cannot be stored")
