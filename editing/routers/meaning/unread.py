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


_TURNED = (
    # "Who is its conductor" as "its conductor is who", in Chinese and in Japanese.
    (
        re.compile(r"^\W*(谁|誰|什么|什麼|何人|哪位|哪一位|哪里|哪裡|哪儿|哪个\w|哪個\w|哪座\w{1,2})是(?!不是)(.+)$"),
        r"\2是\1",
    ),
    (re.compile(r"^\W*(誰|何|どこ|どなた)が(.+?)(です|でしょう)(か?)$"), r"\2は\1\3\4"),
)
_ASKING = re.compile(
    "什么|什麼|哪里|哪裡|哪儿|哪|谁|誰|何|几|幾|多少|是|的|在|于|有|了|个|個|位|一|年|吗|呢|请问|請問|現任|现任|"
    "どこ|どなた|いつ|です|でしょう|ます|ました|は|が|の|を|に|で|か|人"
)
"""In texts without spaces, what asks and joins, and is alike in questions for different things."""


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
    one, other = _in_one_order(one), _in_one_order(other)
    named = [_pairs(_ASKING.sub(" ", text)) for text in (one, other)] if _unspaced(one) and _unspaced(other) else []
    if any(named) and not named[0].keys() & named[1].keys():
        return 0.0  # "its conductor is who" and "its composer is who" have half of their letters in common
    first, second = _pairs(one), _pairs(other)
    total = sum(first.values()) + sum(second.values())
    shared = 2 * sum((first & second).values()) / total if total else 0.0
    return min(1.0, shared / (2 * _ALIKE))


def _in_one_order(text: str) -> str:
    text = text.strip(" ?？。.!！、,，")
    for pattern, order in _TURNED:
        text = pattern.sub(order, text)
    return text


def _unspaced(text: str) -> bool:
    return len(words(text)) > len(text.split()) + 1


def _pairs(text: str) -> Counter[str]:
    return Counter(word[i : i + 2] for word in _runs(text) for i in range(len(word) - 1))


def _runs(text: str) -> list[str]:
    return [f" {run} " for run in re.findall(r"[^\W_]+", re.sub(rf"\b{STAND_IN}\b", " ", text))]
