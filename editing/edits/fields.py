"""The fields of one record of a file of edits, taken by their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import FieldError
from .edit import Locality, all_texts, kind_of, optional_text, required_text

_PROMPT_NAMES = "prompt", "loc", "question"
_ANSWER_NAMES = "answer", "ground_truth", "loc_ans"


class RecordFields:
    """The fields of one record, taken by name; a field that nobody takes is kept as metadata."""

    def __init__(self, record: Mapping[str, Any], prefix: str = "") -> None:
        self._left = dict(record)
        self._prefix = prefix
        self._objects: dict[str, RecordFields] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._left

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

    def target(self, *names: str) -> str:
        """The same where CounterFact writes `{"str": " Rome"}`, with a Wikidata id perhaps, which stays."""
        name = next((name for name in names if self._left.get(name) not in (None, "", [])), None)
        if name is not None and isinstance(self._left[name], Mapping):
            return self.object(name).text("str")
        return self.text(*names)

    def true_answers(self, name: str) -> tuple[str, ...]:
        """All texts of a field of true answers, which may be such an object too."""
        return self.object(name).texts("str") if isinstance(self._left.get(name), Mapping) else self.texts(name)

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

    def peek(self, name: str) -> Any:
        """What the field `name` holds, without taking it."""
        return self._left.get(name)

    def object(self, name: str) -> RecordFields:
        """The fields of the object in the field `name`; none if it is missing."""
        path, value = self._take(name)
        if value is not None and not isinstance(value, Mapping):
            raise FieldError(path, f"must be an object, not {kind_of(value)}")
        return self._objects.setdefault(name, RecordFields(value or {}, prefix=f"{path}."))

    def objects(self, name: str) -> list[RecordFields]:
        """The fields of each object in the list `name`; what these leave does not count as left of the record."""
        path, value = self._take(name)
        if value is not None and not isinstance(value, list):
            raise FieldError(path, f"must be a list, not {kind_of(value)}")
        for i, item in enumerate(value or []):
            if not isinstance(item, Mapping):
                raise FieldError(f"{path}[{i}]", f"must be an object, not {kind_of(item)}")
        return [RecordFields(item, prefix=f"{path}[{i}].") for i, item in enumerate(value or [])]

    def locality(self, prompt_name: str, *answer_names: str) -> tuple[Locality, ...]:
        """The localities whose prompts and answers are two fields of the record: a text each, or lists in step."""
        path, prompts = self._take(prompt_name)
        answer_path, answers = self._take(*answer_names)
        if not isinstance(prompts, list):
            prompt = optional_text(path, prompts)
            answer = next(iter(all_texts(answer_path, answers)), None)
            return () if prompt is None else (Locality(prompt, answer),)
        if not isinstance(answers, list):
            answers = [answers] * len(prompts)  # one for all, or none
        if len(answers) != len(prompts):
            raise FieldError(answer_path, f"has {len(answers)} answers to {len(prompts)} prompts")
        return tuple(
            Locality(required_text(f"{path}[{i}]", prompt), next(iter(all_texts(f"{answer_path}[{i}]", answer)), None))
            for i, (prompt, answer) in enumerate(zip(prompts, answers))
        )

    def localities(self, name: str, answer: str | None = None) -> tuple[Locality, ...]:
        """The localities listed in the field `name`; `answer` goes with those that are only a prompt."""
        return tuple(_localities(*self._take(name), answer))

    def unread(self) -> list[str]:
        """The names of the fields that nobody took."""
        return list(self._left)

    def left(self) -> dict[str, Any]:
        """What was not taken, in the place it has in the record."""
        nested = {name: fields.left() for name, fields in self._objects.items()}
        return self._left | {name: values for name, values in nested.items() if values}


def _localities(name: str, value: object, answer: str | None) -> Iterator[Locality]:
    if isinstance(value, Mapping) and "prompt" in value:  # EasyEdit's own: a column of prompts, one of answers
        yield from RecordFields(value, prefix=f"{name}.").locality("prompt", "ground_truth", "answer")
    elif isinstance(value, Mapping):  # KnowEdit groups its localities by kind.
        for kind, items in value.items():
            yield from _localities(f"{name}.{kind}", items, answer)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            if isinstance(item, Mapping):
                fields = RecordFields(item, prefix=f"{name}[{i}].")
                names = ("loc", "prompt") if "loc_ans" in item else _PROMPT_NAMES  # as it is spelt here
                yield Locality(fields.text(*names), fields.first_text(*_ANSWER_NAMES))
            else:
                yield from (Locality(prompt, answer) for prompt in all_texts(f"{name}[{i}]", item))
    elif value not in (None, ""):
        raise FieldError(name, f"must be a list, not {kind_of(value)}")
