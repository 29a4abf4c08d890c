"""How a prompt is put before the model: an edit's prompt in a template, the answer after it."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import CorrigendaError

_SLOT = "{prompt}"
_QUESTION_PREFIX = "nq question: "


@dataclass(frozen=True)
class Template:
    """A text with `{prompt}` in it once; a written backslash-n is a line break, other braces are literal."""

    text: str = _SLOT

    def __post_init__(self) -> None:
        count = self.text.count(_SLOT)
        if count != 1:
            raise CorrigendaError(f'A template must contain "{_SLOT}" once, but {self.text!r} has it {count} times.')
        object.__setattr__(self, "text", self.text.replace("\\n", "\n"))

    @classmethod
    def parse(cls, text: str | None) -> Template:
        """The template that a user wrote; None is the identity."""
        return cls() if text is None else cls(text)

    def wrap(self, prompt: str) -> str:
        """`prompt` in the template.

        Natural Questions prompts, which benchmarks mark with `nq question: ` and write with no question mark,
        become plain questions first. The identity leaves them as the benchmark has them.
        """
        if self.text == _SLOT:
            return prompt
        question = prompt.removeprefix(_QUESTION_PREFIX)
        if question != prompt:
            question = question.rstrip()
            question += "" if question.endswith("?") else "?"
        return self.text.replace(_SLOT, question)


def join(prompt: str, text: str) -> str:
    """`prompt`, one space, `text`. White space is not doubled."""
    space = "" if prompt[-1:].isspace() else " "
    return prompt + space + text.lstrip()


def join_target(prompt: str, target: str) -> str:
    """The same for what the model is to say, whose own line breaks and indentation follow the prompt as they stand."""
    return prompt + target if is_laid_out(target) else join(prompt, target)


def is_laid_out(target: str) -> bool:
    """Whether a target begins with white space of its own: more than the blank that many write before a word."""
    return target[:1].isspace() and (target[0] != " " or target[1:2].isspace())
