"""How a tokenizer can spell an answer: token after token, with or without the blank before it, whole or in pieces."""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

_VARIANTS = 32
"""Characters of an answer that other tokens than its own may spell: an answer is begun otherwise, if at all."""

COLON, QUOTE, OPENED, SPACE, THINKS, THOUGHT, WORD = (1 << bit for bit in range(7))
"""What a token is to an answer that comes later: it ends in a colon or an opening bracket; is one quotation mark; is a
colon or bracket and the quotation mark after it; is white space; begins a think block; ends one; goes on in a word."""

_KINDS = (
    (COLON, re.compile(r"[:\[]\s*$")),
    (QUOTE, re.compile(r'\s*"$')),
    (OPENED, re.compile(r'.*[:\[]\s*"$', re.DOTALL)),
    (SPACE, re.compile(r"\s+$")),
    (THINKS, re.compile(r"\s*<think>\s*$")),
    (THOUGHT, re.compile(r"\s*</think>\s*$")),
    (WORD, re.compile(r"\w")),
)


class Spelling(NamedTuple):
    """An answer as a path of nodes: 0 before it, node j after j of its own tokens, others within them.

    text    what the tokens say, with the blank that the first may begin with
    arcs    (node, token, node): from where which token leads where; the answer's own tokens first
    nodes   by how many characters of `text` were said, the node
    length  how many tokens it has of its own
    """

    text: str
    arcs: tuple[tuple[int, int, int], ...]
    nodes: dict[int, int]
    length: int

    @property
    def lead(self) -> int:
        """White space that `text` begins with."""
        return len(self.text) - len(self.text.lstrip())

    @property
    def bare(self) -> int:
        """The node where white space stands before it already."""
        return self.nodes[self.lead]


class Vocabulary:
    """The texts of a tokenizer's tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        size, special = len(tokenizer), set(tokenizer.all_special_ids)
        self._before = len(self._decoded([]))
        self.kinds: np.ndarray = np.zeros(size, dtype=np.uint8)
        """uint8 `[vocabulary]`: of each token, which of COLON, QUOTE, ... it is."""
        self._tokens: dict[str, list[int]] = {}
        for token in range(size):
            text = self.said([token])
            think = "think>" in text
            if not text or "\ufffd" in text or (token in special and not think):
                continue
            if not think:
                self._tokens.setdefault(text, []).append(token)
            for kind, form in _KINDS:
                if form.search(text) if kind == COLON else form.match(text):
                    self.kinds[token] |= kind
        self._longest = max(map(len, self._tokens), default=0)

    def _decoded(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode([*self._anchor, *tokens], clean_up_tokenization_spaces=False)

    def said(self, tokens: Sequence[int]) -> str:
        """What tokens say after others: alone, some tokenizers leave the first one's blank out."""
        return self._decoded(tokens)[self._before :]

    def spelling(self, labels: Sequence[int]) -> Spelling:
        """The ways to say what these tokens say."""
        text = self.said(labels)
        said = [self.said(labels[:count]) for count in range(1, len(labels) + 1)]
        nodes = {len(part): count for count, part in enumerate(said, start=1) if text.startswith(part)}
        lead = len(text) - len(text.lstrip())
        for blank in range(lead + 1):
            nodes.setdefault(blank, 0)
        arcs = {(count, label): count + 1 for count, label in enumerate(labels)}
        waiting, seen = [0, lead], set()

        def reach(start: int, piece: str, end: int) -> None:
            for token in self._tokens.get(piece, ()):
                node = nodes.setdefault(end, len(labels) + len(nodes) + 1)
                arcs.setdefault((nodes[start], token), node)
                heapq.heappush(waiting, end)

        for count in range(1, min(self._longest, len(text)) + 1 if not lead else 0):
            reach(0, f" {text[:count]}", count)
        while waiting:
            start = heapq.heappop(waiting)
            if start in seen or start >= min(len(text), _VARIANTS):
                continue
            seen.add(start)
            for end in range(max(start, lead) + 1, min(start + self._longest, len(text)) + 1):
                reach(start, text[start:end], end)
        return Spelling(text, tuple((node, token, to) for (node, token), to in arcs.items()), nodes, len(labels))
