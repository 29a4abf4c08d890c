"""Where the answer of an edit stands when a request comes: after its prompt, or after what the prompt has of it."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

from .prompts import PromptFormat
from .spelling import Spelling

WAITS, AFTER_COLON, AFTER_THOUGHT, SAID, LEFT, THINKING = -1, -2, -3, -4, -5, -6
"""States of an answer that is at none of its nodes: something else is written; after a colon or bracket; a think block
has just ended; it was said whole, or in part, and something else after that; a think block goes on."""

UNSAID = "let no answer of the edit's begin, or went on otherwise"
"""Of a request whose edit did not answer it, in a sentence on the request."""

QUOTED = 1 << 20
"""Added to the node of an answer that stands in quotation marks, whose end is another than an answer's."""

_KEPT = 1024
"""Spellings kept for requests that come again."""

_OPENED = re.compile(r'(?:[\[,]|[{,]\s*"(?:\\.|[^"\\])*"\s*:)\s*"$')
_JSON = re.compile(r'[{\[](?:[^{}]*,)?\s*(?:"(?:\\.|[^"\\])*"?\s*(:?)\s*)?$')


class AnswerPlan(NamedTuple):
    """How the answer of one sequence can be said, and where it stands at the prompt's last token.

    arcs     (node, token, node), as of `Spelling`
    length   how many tokens the answer has; at that node its end is said, where that was learnt (`ends`)
    numeric  whether it can stand in JSON without quotation marks
    bare     the node of an answer that begins after white space, or in quotation marks
    start    the state at the prompt's last token: a node, `QUOTED` or not, or one of those below 0
    """

    arcs: tuple[tuple[int, int, int], ...]
    length: int
    ends: bool
    numeric: bool
    bare: int
    start: int


class AnswerStarts:
    """Finds for each request where the answer of its edit stands; `ends`: whether answers' ends are learnt."""

    def __init__(self, prompts: PromptFormat, ends: bool) -> None:
        self.prompts = prompts
        self.ends = ends
        self._known: OrderedDict[tuple[str, str], Spelling] = OrderedDict()
        self._special = [token for token in prompts.special.values() if "think>" not in token]

    def spelling(self, prompt: str, target: str) -> Spelling:
        """How the target of an edit with this prompt can be said."""
        found = self._known.pop((prompt, target), None)
        if found is None:
            found = self.prompts.vocabulary.spelling(self.prompts.encode_with_target(prompt, target)[1])
        self._known[prompt, target] = found
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return found

    def plan(self, ids: Sequence[int], edit: Any) -> AnswerPlan:
        """The plan for a tokenised prompt that is answered by `edit` (anything with `prompt` and `target`)."""
        spelling = self.spelling(edit.prompt, edit.target)
        words = spelling.text.strip()
        arcs, numeric = spelling.arcs, bool(re.match(r"-?\d", words))
        if numeric:
            arcs += tuple((AFTER_COLON, token, node) for start, token, node in arcs if start in (0, spelling.bare))
        start = self._start(self.prompts.decoded(ids), edit, spelling)
        return AnswerPlan(arcs, spelling.length, self.ends, numeric, spelling.bare, start)

    def in_words(self, ids: Sequence[int], edit: Any) -> str | None:
        """Where the answer of `edit` stands in a tokenised prompt, said of the prompt; None where it is to begin."""
        plan, spelling = self.plan(ids, edit), self.spelling(edit.prompt, edit.target)
        if plan.start == THINKING:
            return "is in the middle of a think block: the answer begins after it"
        if plan.start == LEFT:
            return "closes as none does that the edit was learnt in: the base model answers"
        if plan.start in (WAITS, AFTER_COLON) or plan.start == QUOTED + plan.bare:
            return "has begun something else, JSON say: the answer waits for its place in it"
        node = plan.start - QUOTED if plan.start >= QUOTED else plan.start
        said = max((count for count, at in spelling.nodes.items() if at == node), default=0)
        part = spelling.text[:said].strip()
        return f'has "{part}" of the answer, which goes on from there' if part else None

    def _start(self, text: str, edit: Any, spelling: Spelling) -> int:
        before, begun = self.prompts.after_question(text)
        # Templates that end in a line break were learnt with the answer's own blank after it.
        opens = spelling.bare if text[-1:] == " " else 0
        if "<think>" in before + begun:
            _, ended, begun = (before + begun).rpartition("</think>")
            if "<think>" in begun or not ended:
                return THINKING
        if before and not begun.strip():
            return opens
        if before and any(token in begun for token in self._special):
            return LEFT  # another closing of a template than those that the edit was learnt in
        if before and (node := self._node(begun.lstrip(), spelling)) is not None:
            return node
        if text.endswith(self.prompts.wrap(edit.prompt)):
            return 0  # as it was learnt, whatever it ends in: `{"capital": "` may be a prompt
        tail = begun if before else text
        if _OPENED.search(tail):
            return QUOTED + spelling.bare
        if (begun_at := self._ending(text, edit, spelling)) is not None:
            return begun_at
        if found := _JSON.search(tail if before else tail[tail.rfind("\n") + 1 :]):
            return AFTER_COLON if found[1] else WAITS
        return opens

    def _node(self, begun: str, spelling: Spelling) -> int | None:
        """The state of an answer of which `begun` is written; None where that is something else."""
        if not spelling.text.lstrip().startswith(begun):
            return None
        return spelling.nodes.get(spelling.lead + len(begun), WAITS)

    def _ending(self, text: str, edit: Any, spelling: Spelling) -> int | None:
        """The state of an answer that a prompt of any form ends in the first tokens of; None where it does not.

        Not where the edit's own prompt ends so, of which it is a part; nor in the whole answer, which questions name
        too, but after that prompt.
        """
        words, own = spelling.text[spelling.lead :], self.prompts.wrap(edit.prompt)
        for said, node in sorted(spelling.nodes.items(), reverse=True):
            part = words[: said - spelling.lead]
            if not 0 < node <= spelling.length or not part.strip() or not text.endswith(part):
                continue
            rest = text[: -len(part)]
            if rest[-1:].isalnum() or own.endswith(part) or edit.prompt.endswith(part):
                continue
            if node < spelling.length or rest.rstrip().endswith(own.rstrip()):
                return node + (QUOTED if rest.endswith('"') else 0)
        return None
