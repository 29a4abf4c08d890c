"""The forms of records of edits: our own, and those of the field's benchmarks as they are published."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..errors import CorrigendaError, FieldError
from ..shown import name as check_name
from .edit import Edit, kind_of, optional_text, required_text
from .fields import RecordFields

TARGETS = "target_new", "target", "answer"
"""What records that have a `prompt` call their target: benchmarks mostly the first, our own files the second."""

REPHRASES = "rephrase", "rephrases", "rephrase_prompt", "queries", "paraphrases", "paraphrase_prompts"

Values = dict[str, Any]
"""What a reader gives of an edit: the arguments of `Edit`."""


def _filled(text: str, subject: str | None) -> str:
    """A pattern with its subject; a text that names the subject already is none, whatever its braces mean."""
    return text if subject is None or subject in text else text.replace("{}", subject)


def _read_prompt_record(fields: RecordFields) -> list[Values]:
    """Our own JSON Lines, EasyEdit, KnowEdit, QAEdit, MEMIT's requests: they differ in the names of optional fields."""
    prompt, subject = fields.text("prompt"), fields.optional_text("subject")
    true_answers = fields.texts("ground_truth") + fields.texts("target_old") + fields.true_answers("target_true")
    values = {
        "prompt": _filled(prompt, subject),
        "target": fields.target(*TARGETS),
        "subject": subject,
        "ground_truth": true_answers,
        "rephrases": tuple(_filled(text, subject) for text in fields.texts(*REPHRASES)),
        "localities": fields.locality("locality_prompt", "locality_answer", "locality_ground_truth")
        + fields.locality("loc_prompt", "loc_ans", "loc_answer")
        + fields.localities("localities")
        + fields.localities("locality")
        + fields.localities("neighborhood_prompts", answer=next(iter(true_answers), None)),
    }
    return [values]


def _read_rewrites(fields: RecordFields) -> list[Values]:
    """CounterFact of ROME: one rewrite; MQuAKE: a list of them, an edit each, whose `question` is a rephrasing.

    CounterFact's neighbourhood prompts are other subjects for which the true answer holds.
    """
    several = isinstance(fields.peek("requested_rewrite"), list)
    rewrites = fields.objects("requested_rewrite") if several else [fields.object("requested_rewrite")]
    if not rewrites:
        raise FieldError("requested_rewrite", "is an empty list")
    found = []
    for rewrite in rewrites:
        prompt = rewrite.text("prompt")
        subject = rewrite.text("subject") if "{}" in prompt else rewrite.optional_text("subject")
        target = rewrite.target("target_new")
        true_answers = rewrite.true_answers("target_true") + rewrite.texts("ground_truth")
        values: Values = {
            "prompt": prompt if subject is None else prompt.replace("{}", subject),
            "target": target,
            "subject": subject,
            "ground_truth": true_answers,
            "rephrases": rewrite.texts("question", "paraphrase_prompts", "rephrase_prompt"),
            "localities": rewrite.localities("locality"),
        }
        if several:
            values["metadata"] = {"requested_rewrite": rewrite.left()}
        found.append(values)
    if not several:
        answer = next(iter(values["ground_truth"]), None)
        values["rephrases"] = fields.texts("paraphrase_prompts") + values["rephrases"]
        values["localities"] += fields.localities("neighborhood_prompts", answer=answer)
    return found


def _read_mend(fields: RecordFields) -> list[Values]:
    """ZsRE of MEND and WISE. The edit is to the counterfactual answer `alt`; `answers` are the true ones.

    Some records have no such answer: the field's reader leaves these out.
    """
    if "alt" in fields and optional_text("alt", fields.peek("alt")) is None:
        return []
    values = {
        "prompt": fields.text("src"),
        "target": fields.text("alt"),
        "subject": fields.optional_text("subject"),
        "ground_truth": fields.texts("answers"),
        "rephrases": fields.texts("rephrase"),
        "localities": fields.locality("loc", "loc_ans"),
    }
    return [values]


def _read_wikibio(fields: RecordFields) -> list[Values]:
    """WikiBio of KnowEdit: a passage about `concept` so far, and its true next sentence."""
    values = {
        "prompt": fields.text("text"),
        "target": fields.text("labels"),
        "subject": fields.optional_text("concept"),
        "rephrases": fields.texts("rephrase"),
        "localities": fields.localities("locality"),
    }
    return [values]


def _read_wikibigedit(fields: RecordFields) -> list[Values]:
    """WikiBigEdit: a Wikidata change as a question. `personas` are the question as others would ask it."""
    values = {
        "prompt": fields.text("update"),
        "target": fields.text("ans"),
        "subject": fields.optional_text("subject"),
        "ground_truth": fields.texts("ground_truth"),
        "rephrases": fields.texts("rephrase", "personas"),
        "localities": fields.locality("loc", "loc_ans"),
    }
    return [values]


def _read_question(fields: RecordFields) -> list[Values]:
    """UnKE: a question, the same in other words, and an answer that may be a paragraph."""
    values = {
        "prompt": fields.text("question"),
        "target": fields.text("answer", "target_new", "target"),
        "subject": fields.optional_text("subject"),
        "ground_truth": fields.texts("ground_truth"),
        "rephrases": fields.texts("para_question", *REPHRASES),
        "localities": fields.localities("localities") + fields.localities("locality"),
    }
    return [values]


def _read_sanitation(fields: RecordFields) -> list[Values]:
    """Sanitation of KnowEdit, a file of two lists: questions to forget, and others whose answers must stay.

    The second, dealt out in turn, are the localities of the first.
    """
    forget, retain = ("K_F", "K_R") if "K_F" in fields or "K_R" in fields else ("success", "locality")
    questions = fields.objects(forget)
    if not questions:
        raise FieldError(forget, "holds no edits")
    found = [values | {"metadata": question.left()} for question in questions for values in _read_question(question)]
    retained = fields.localities(retain)
    for number, values in enumerate(found):
        values["localities"] += retained[number :: len(found)]
    return found


def _read_convsent(fields: RecordFields) -> list[Values]:
    """ConvSent of KnowEdit: what is said of a topic in favour and against it, of which an edit is to one."""
    topic = fields.text("ent")
    sides = [side for side in ("pos", "neg") if fields.peek(side) not in (None, "", [])]
    if len(sides) == 2:
        raise FieldError("pos", 'and "neg" are both there, and an edit is to one of them: leave the other out')
    (side,) = sides or ["pos"]
    target = required_text(side, fields.first_text(side))
    return [{"prompt": f"What do you think of {topic}?", "target": target, "subject": topic}]


class Format(NamedTuple):
    """A form of records: its name, the fields that mark it (any one of them does), and its reader."""

    name: str
    marks: tuple[str, ...]
    read: Callable[[RecordFields], list[Values]]

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Whether `record` is of this form."""
        return any(mark in record for mark in self.marks)


FORMATS = (
    Format("CounterFact, MQuAKE", ("requested_rewrite",), _read_rewrites),
    Format("our own, EasyEdit, KnowEdit, QAEdit", ("prompt",), _read_prompt_record),
    Format("ZsRE of MEND", ("src", "alt"), _read_mend),
    Format("WikiBigEdit", ("update",), _read_wikibigedit),
    Format("WikiBio", ("text", "labels", "concept"), _read_wikibio),
    Format("Sanitation", ("K_F", "K_R", "success"), _read_sanitation),
    Format("ConvSent", ("ent",), _read_convsent),
    Format("UnKE", ("question",), _read_question),
)

KEPT = frozenset(
    (
        # an edit's names and origins
        "id", "case_id", "pararel_idx", "source", "tag", "relation", "relation_id", "object", "orig",
        "cond", "pred", "locality_kind",
        # read of every form
        "metadata", "protected", "requested_rewrite",
        # true answers, and those after all hops
        "answer", "answers", "answer_alias", "answer_extended", "new_answer", "new_answer_alias",
        "new_answer_extended", "pos", "neg",
        # questions that ask more than an edit promises
        "portability", "portability_prompt", "portability_answer", "portability_ground_truth",
        "attribute_prompts", "generation_prompts", "mhop", "mhop_ans", "ood_rephrase", "questions",
        "single_hops", "new_single_hops", "sub_question", "sub_answer",
    )
)  # fmt: skip
"""Fields that are kept with an edit and known to say nothing of what it is to do."""


class Read(NamedTuple):
    """What a record holds: its edits, and the names of fields that no form knows."""

    edits: list[Edit]
    unknown: list[str]


class UnknownFormError(CorrigendaError):
    """A record has none of the fields that mark a form; the message is the end of a sentence."""


def form_of(record: Mapping[str, Any]) -> Format:
    """The form of a record, by the fields that it has."""
    form = next((form for form in FORMATS if form.matches(record)), None)
    if form is None and any(name in record for name in TARGETS[:2]):
        return FORMATS[1]  # an edit without its prompt
    if form is None:
        names = list(record)
        shown = ", ".join(f'"{name}"' for name in names[:6]) + (", ..." if len(names) > 6 else "") or "no field"
        *marks, last = (f'"{form.marks[0]}" ({form.name})' for form in FORMATS)
        raise UnknownFormError(f"the form is unknown, for it has {shown} and none of {', '.join(marks)} or {last}")
    return form


def read_record(record: Mapping[str, Any], default_id: str) -> Read:
    """The edits that a record describes, whatever its form: mostly one, and none of some that are to be left out.

    A FieldError names what is wrong with it, an UnknownFormError says that its form is not one that is read.
    """
    form = form_of(record)
    fields = RecordFields(record)
    found = form.read(fields)
    identifier = fields.identifier("id", "case_id") or default_id
    check_name("id" if record.get("id") is not None else "case_id", identifier)
    protected = fields.texts("protected")
    saved = fields.object("metadata").left()  # A record of Edit.to_dict has its metadata in one field.
    left = {name: value for name, value in fields.left().items() if name != "metadata"}
    _check_storable("", left)
    _check_storable("metadata", saved)
    edits = []
    for number, values in enumerate(found, start=1):
        own = values.pop("metadata", {})
        _check_storable("", own)
        name = identifier if len(found) == 1 else f"{identifier}-{number}"
        edits.append(Edit(**values, id=name, metadata=saved | left | own, protected=protected))
    return Read(edits, [name for name in fields.unread() if name not in KEPT])


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
    elif not isinstance(value, (str, int, float, type(None))):
        raise FieldError(name, f"is {kind_of(value)}, which cannot be stored")
