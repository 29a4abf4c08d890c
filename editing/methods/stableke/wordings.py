"""Other wordings of an edit and descriptions of it: the record's own, or written by the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ...backbone.written import written
from ...edits.edit import Edit
from ...edits.template import join
from ...errors import CorrigendaError

_REWORD = (
    "Ask this question in other words: {prompt}",
    "Rewrite this question so that it means the same: {prompt}",
    "How would a friend ask this? {prompt}",
    "Make this a polite question: {prompt}",
    "Make this question shorter: {prompt}",
    "Begin this question with another word: {prompt}",
)
_DESCRIBE = (
    "Write one sentence that says: {fact}",
    "Explain this fact to a child in one sentence: {fact}",
    "Write a short news line about this: {fact}",
    "Tell somebody this in your own words: {fact}",
)


class Wordings(NamedTuple):
    """Of one edit: other ways to ask for its target, and texts that say what it says."""

    paraphrases: list[str]
    descriptions: list[str]


def given(edit: Edit, name: str, most: int) -> list[str] | None:
    """The texts of a record's `metadata` under a name, `most` of them; None where it has none."""
    texts = edit.metadata.get(name)
    if texts is None:
        return None
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise CorrigendaError(
            f'Edit "{edit.id or edit.prompt}" has `metadata` whose "{name}" is no list of texts: give texts, or none.'
        )
    return list(texts[:most])


def wordings(model: Any, tokenizer: Any, edit: Edit, paraphrases: int, descriptions: int, most: int) -> Wordings:
    """Of an edit, whatever is wanted of each kind; a text that the model makes of no use is what it was asked about.

    A paraphrase names the subject, where the record has one; a description says the target.
    """
    fact = join(edit.prompt, edit.target)
    other, told = given(edit, "paraphrases", paraphrases), given(edit, "descriptions", descriptions)
    asked = [] if other is not None else [_of(_REWORD, i).format(prompt=edit.prompt) for i in range(paraphrases)]
    asked += [] if told is not None else [_of(_DESCRIBE, i).format(fact=fact) for i in range(descriptions)]
    own = own_texts(model, tokenizer, asked, most) if asked else []
    if other is None:
        subject = (edit.subject or "").casefold()
        other = [text if text and subject in text.casefold() else edit.prompt for text in own[:paraphrases]]
        own = own[paraphrases:]
    if told is None:
        told = [text if edit.target.strip().casefold() in text.casefold() else fact for text in own]
    return Wordings(other, told)


def _of(frames: Sequence[str], number: int) -> str:
    return frames[number % len(frames)]


def own_texts(model: Any, tokenizer: Any, requests: Sequence[str], most: int) -> list[str]:
    """The first line that the model writes to each request, greedily: in its chat, where it has one."""
    rows = []
    for request in requests:
        if getattr(tokenizer, "chat_template", None):
            turns = [{"role": "user", "content": request}]
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            rows.append(tokenizer(text, add_special_tokens=False)["input_ids"])
        else:
            rows.append(tokenizer(request)["input_ids"])
    lines = (text.splitlines() for text in written(model, tokenizer, rows, most))
    return [line[0].strip().strip('"') if line else "" for line in lines]
