"""Where a prompt names its subject: the token at which a fact is looked up."""

from __future__ import annotations

from collections.abc import Sequence

from ...backbone.frozen import Row, common_beginning
from ...edits.edit import Edit
from ...edits.prompts import PromptFormat
from ...errors import CorrigendaError


def lookup_tokens(
    method: str, prompts: PromptFormat, edit: Edit, contexts: Sequence[str], rows: Sequence[Row]
) -> list[int]:
    """The place of the subject's last token in each row, the edit after each context (`Method.rows`).

    The token that holds the subject's last character, as in ROME's published code ("subject_last"). Raises, naming the
    edit, where it has no subject or its prompt does not name it.
    """
    subject = (edit.subject or "").strip()
    name = f'Edit "{edit.id or edit.prompt}"'
    if not subject:
        raise CorrigendaError(f"{name} has no `subject`, which {method} looks the fact up by: add it to the record.")
    at = edit.prompt.rfind(subject)
    if at < 0:
        at = edit.prompt.casefold().rfind(subject.casefold())
    if at < 0:
        raise CorrigendaError(
            f'{name} has the subject "{subject}", which its prompt does not name: {method} looks the fact up there, '
            "so write the subject as the prompt has it."
        )
    places = []
    for context, row in zip(contexts, rows):
        text = prompts.wrap_in_context(context, edit.prompt)
        # A template may write the prompt otherwise (`Template.wrap`): then the subject itself is what is looked for.
        begin = text.rfind(edit.prompt)
        end = begin + at + len(subject) if begin >= 0 else text.casefold().rfind(subject.casefold()) + len(subject)
        before = prompts.encode(text[:end])
        # Where the text's end and what follows are one token, that token is it.
        places.append(min(len(common_beginning(before, row.prompt)), len(before) - 1, len(row.prompt) - 1))
    return places


def subject_row(prompts: PromptFormat, edit: Edit) -> tuple[tuple[int, ...], int]:
    """The tokens of "{subject} is a", and the place of the subject's last one."""
    subject = (edit.subject or "").strip()
    row = prompts.tokenizer(f"{subject} is a")["input_ids"]
    alone = prompts.tokenizer(subject)["input_ids"]
    return tuple(row), min(len(common_beginning(alone, row)), len(alone) - 1)
