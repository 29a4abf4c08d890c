"""From an edit's prompt to what the model reads, and from what the model reads back to the question in it."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import CorrigendaError
from .spelling import Vocabulary
from .template import Template, is_laid_out, join, join_target
from .tokenizer import Tokenizer

_MARK = "corrigenda-prompt-stands-here"

_OPTIONS: tuple[dict[str, bool], ...] = (
    {},
    {"enable_thinking": False},
    {"enable_thinking": True},
    {"thinking": False},
    {"thinking": True},
)
"""What chat templates are asked with: those that do not know an option leave it out of account."""


class Frame(NamedTuple):
    """What stands before and after a prompt; special: whether the tokenizer adds its special tokens."""

    opening: str
    closing: str
    special: bool

    @classmethod
    def around(cls, text: str, special: bool) -> Frame:
        """What stands around the mark in a text."""
        opening, _, closing = text.partition(_MARK)
        return cls(opening, closing, special)


_COMMON = (Frame("", "", True), Frame("Question: ", "\nAnswer:", True))


class PromptFormat:
    """How prompts reach the model: in a template, as a chat's user turn, or as they are.

    `wrap` puts a prompt before the model. `question` takes a tokenised sequence and gives back the text of its last
    user turn or of the template's slot, so that a query is compared with the stored edits by what was asked alone.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template | str | None = None, chat: bool = False) -> None:
        self.tokenizer = tokenizer
        self.template = template if isinstance(template, Template) else Template.parse(template)
        self.chat = chat
        if chat and not getattr(tokenizer, "chat_template", None):
            raise CorrigendaError("This model's tokenizer has no chat template: leave out the chat-template option.")
        self._opening, self._closing = self._frame()

    def wrap(self, prompt: str) -> str:
        """The text that the model reads for `prompt`, up to where its answer begins."""
        text = self.template.wrap(prompt)
        return self._turns([{"role": "user", "content": text}]) if self.chat else text

    def _turns(self, turns: list[dict[str, str]], **options: bool) -> str:
        return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options)

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer)

    @functools.cached_property
    def chat_closings(self) -> tuple[str, ...]:
        """What the tokenizer's own template can put between a user's text and the answer; its default first."""
        if not getattr(self.tokenizer, "chat_template", None):
            return ()
        turns = [{"role": "user", "content": _MARK}]
        return tuple(dict.fromkeys(self._turns(turns, **options).rpartition(_MARK)[2] for options in _OPTIONS))

    def other_frames(self, common: bool) -> list[Frame]:
        """The frames, but its own, that a question may come in: of a chat, each closing that its template can make.

        common: also the question alone, `Question: ...\\nAnswer:`, and the tokenizer's chat, whichever it is itself.
        """
        turns = [{"role": "user", "content": self.template.wrap(_MARK) if self.chat else _MARK}]
        chats = []
        if self.chat or (common and self.chat_closings):
            chats = [Frame.around(self._turns(turns, **options), False) for options in _OPTIONS]
        frames = [*(_COMMON if common else ()), *chats]
        own = Frame.around(self.wrap(_MARK), not self.chat)
        return [frame for frame in dict.fromkeys(frames) if frame[:2] != own[:2]]

    def encode_in_frame(self, frame: Frame, prompt: str) -> list[int]:
        """Ids of a prompt in another frame than this format's own."""
        text = frame.opening + prompt + frame.closing
        return self.tokenizer(text, add_special_tokens=frame.special)["input_ids"]

    def decoded(self, ids: Sequence[int]) -> str:
        """The text of a tokenised prompt, its special tokens included."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def after_question(self, text: str) -> tuple[str, str]:
        """The last known closing of a question in a prompt ("" where there is none), and what stands after it."""
        known = {closing.rstrip(" ") for closing in (self._closing, *self.chat_closings)}
        ends = [(text.rfind(closing) + len(closing), closing) for closing in known if closing and closing in text]
        if not ends:
            return "", text
        end, closing = max(ends, key=lambda found: (found[0], len(found[1])))
        return closing, text[end:]

    def _frame(self) -> tuple[str, str]:
        """What stands just before and just after a prompt, in every context."""
        before, _, after = self.wrap(_MARK).partition(_MARK)
        if self.chat:
            later = [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": self.template.wrap(_MARK)},
            ]
            before = _common_ending(before, self._turns(later).partition(_MARK)[0])
        return before, after

    @property
    def eos(self) -> int:
        """The token that ends an answer."""
        return self.tokenizer.eos_token_id

    @functools.cached_property
    def special(self) -> dict[int, str]:
        """The tokens that decoding leaves out of an answer's text: not those with a role of their own alone, for a
        chat's marks need have none."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).items()
        own = zip(self.tokenizer.all_special_ids, self.tokenizer.all_special_tokens)
        return {**{number: token.content for number, token in added if token.special}, **dict(own)}

    def encode(self, text: str) -> list[int]:
        """Token ids of a wrapped prompt; a chat's text already holds its special tokens."""
        return self.tokenizer(text, add_special_tokens=not self.chat)["input_ids"]

    def encode_with_target(self, prompt: str, target: str) -> tuple[list[int], list[int]]:
        """Ids of the wrapped prompt, and of the target that follows it (`join_target`)."""
        return self._split(self.wrap(prompt), target)

    def _split(self, text: str, target: str) -> tuple[list[int], list[int]]:
        ids = self.encode(text)
        whole = self.encode(join_target(text, target))
        if whole[: len(ids)] == ids and len(whole) > len(ids):
            return ids, whole[len(ids) :]
        # The tokenizer merged across the seam; at inference the prompt stands alone, so it must here.
        alone = target if is_laid_out(target) else " " + target.lstrip()
        return ids, self.tokenizer(alone, add_special_tokens=False)["input_ids"]

    def encode_in_context(self, context: str, prompt: str, target: str) -> tuple[list[int], list[int]]:
        """The same after a context text, which in a chat belongs to the user's turn."""
        return self._split(self.wrap_in_context(context, prompt), target)

    def wrap_in_context(self, context: str, prompt: str) -> str:
        """The text that the model reads for a prompt after a context text."""
        if not context:
            return self.wrap(prompt)
        return self.wrap(join(context, prompt)) if self.chat else join(context, self.wrap(prompt))

    def question(self, ids: Sequence[int]) -> str:
        """The text that was asked in a tokenised prompt: the template's or the last user turn's content.

        A chat is seen as one whatever this format is: else earlier turns would be asked again, and by their edits.
        """
        chats = self._chats
        if chats is not None and chats._opening.strip() in self.decoded(ids):
            return self._without_frame(chats.question(ids))
        text = self.tokenizer.decode(list(ids), skip_special_tokens=not self.chat, clean_up_tokenization_spaces=False)
        text = self._without_frame(text)
        if self.chat:
            for closing in (self._closing, *self.chat_closings):  # behind it an answer was begun
                text = text.partition(closing.rstrip())[0] if closing.strip() else text
            special = [token for token in self.tokenizer.all_special_tokens if token]
            text = re.sub("|".join(map(re.escape, special)) or "$^", " ", text)
        return text

    @functools.cached_property
    def _chats(self) -> PromptFormat | None:
        """The format of the tokenizer's own chats, where this is another."""
        if self.chat or not getattr(self.tokenizer, "chat_template", None):
            return None
        chats = PromptFormat(self.tokenizer, None, True)
        return chats if chats._opening.strip() else None

    def _without_frame(self, text: str) -> str:
        """A text without the closing that it ends in, and what stands before the last opening."""
        closing, opening = self._closing.rstrip(), self._opening.lstrip()
        if closing and text.rstrip().endswith(closing):
            text = text.rstrip()[: -len(closing)]
        return text[text.rfind(opening) + len(opening) :] if opening.strip() and opening in text else text

    def user_tokens(self, ids: Sequence[int]) -> tuple[int, int]:
        """Which tokens a feature fingerprint is pooled over: the last user turn's in a chat, else the whole prompt."""
        if not self.chat:
            return 0, len(ids)
        ids = list(ids)
        opening = self.tokenizer(self._opening.lstrip(), add_special_tokens=False)["input_ids"]
        closing = self.tokenizer(self._closing, add_special_tokens=False)["input_ids"]
        # What a frame has on the prompt's side of its special tokens may be cut otherwise beside another text: of the
        # opening keep the special tokens and the two after them (a role and its line break), of the closing what
        # begins with one.
        special = set(self.tokenizer.all_special_ids)
        opening = opening[: max((i for i, token in enumerate(opening) if token in special), default=-1) + 3]
        closing = closing[min((i for i, token in enumerate(closing) if token in special), default=0) :]
        end = len(ids) - len(closing) if ids[-len(closing) :] == closing else len(ids)
        for start in range(end - len(opening), -1, -1):
            if ids[start : start + len(opening)] == opening:
                return start + len(opening), end
        return 0, len(ids)

    def text_place(self, ids: Sequence[int]) -> int:
        """Where in a tokenised prompt a text before its question belongs: in a chat at the last user turn's beginning,
        else at the prompt's, after a token that begins every text."""
        ids = list(ids)
        if not self.chat:
            return int(bool(ids) and ids[0] == self.tokenizer.bos_token_id)
        turns = [{"role": "user", "content": _MARK}]
        later = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, *turns]
        before, again = (self._turns(each).partition(_MARK)[0] for each in (turns, later))
        opening = self.tokenizer(_common_ending(before, again).lstrip(), add_special_tokens=False)["input_ids"]
        for start in range(len(ids) - len(opening), -1, -1):
            if opening and ids[start : start + len(opening)] == opening:
                return start + len(opening)
        return self.user_tokens(ids)[0]

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it: `PromptFormat(tokenizer, **saved)` gives the same format back."""
        return {"template": self.template.text, "chat": self.chat}


def _common_ending(first: str, second: str) -> str:
    length = 0
    while length < min(len(first), len(second)) and first[-length - 1] == second[-length - 1]:
        length += 1
    return first[len(first) - length :]
