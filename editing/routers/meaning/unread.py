"""Questions that an English encoder does not read: compared by their letters alone, where their subject is the same."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from .subject import STAND_IN, words

_ENGLISH = frozenset(
    (
        *("the", "is", "of", "what", "who", "whom", "whose", "where", "when", "which", "was", "were", "did", "does"),
        *("how", "in", "by", "to", "for", "are", "on", "at", "as", "with", "from", "and", "has", "have", "had", "its"),
        *("that", "this", "be", "been", "their", "they", "name", "called", "about", "not", "or", "it's", "who's"),
    )
)
_FOREIGN = frozenset(
    (
        *("wer", "wem", "wo", "woher", "wann", "wie", "welche", "welchen", "welcher", "welches", "wurde"),
        *("ist", "der", "und", "von", "qui", "ou", "quand", "quel", "quelle", "est", "les"),
        *("quien", "donde", "cuando", "cual", "que", "el", "chi", "dove", "quando", "quale", "della"),
        *("wat", "waar", "het", "een", "onde", "quem", "qual", "em"),
    )
)
_FEWEST_WORDS = 4
"""Fewer say nothing of a language, "it speaks" is English, too; but for words that English has not."""

_ALIKE = 0.5
"""From this share of pairs of letters in common on, two questions about one subject count as the same. In each of the
six languages tried, other questions about a subject so stay the base model's; rephrasings in other words ("Who heads"
for "Who is the president of") are not found."""


def is_unread(text: str) -> bool:
    """Whether a question without its subject is in a language that the encoder was hardly taught: not English."""
    letters = [letter for letter in text.replace(STAND_IN, "") if letter.isalpha()]
    foreign = sum(not unicodedata.name(letter, "").startswith("LATIN") for letter in letters)
    if foreign > 0.3 * len(letters) or re.search("[¿¡]", text):
        return True
    there = [word for word in words(text) if word != STAND_IN]
    if _ENGLISH.intersection(there):
        return False
    return len(there) >= _FEWEST_WORDS or bool(_FOREIGN.intersection(there))


def likeness(one: str, other: str) -> float:
    """How surely two such questions ask the same, 0 to 1, and .5 at `_ALIKE`: by the pairs of letters they share."""
    first, second = _pairs(one), _pairs(other)
    total = sum(first.values()) + sum(second.values())
    shared = 2 * sum((first & second).values()) / total if total else 0.0
    return min(1.0, shared / (2 * _ALIKE))


def _pairs(text: str) -> Counter[str]:
    return Counter(word[i : i + 2] for word in _runs(text) for i in range(len(word) - 1))


def _runs(text: str) -> list[str]:
    return [f" {run} " for run in re.findall(r"[^\W_]+", re.sub(rf"\b{STAND_IN}\b", " ", text))]
