"""Texts about another subject than an edit's, though much of its name stands there: another number, another name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

from .subject import CONNECTORS, FUNCTION_WORDS, WORD, content_words, normalised, spelt_as, words

_NUMBER = re.compile(r"\w*\d\w*|[vx]|[ivx]{2,4}")
"""A word that tells one of a series from the others: "Fiat 126", "Clement X"."""
_ORDINAL = re.compile(r"^(\d+)(st|nd|rd|th)$")
_TITLES = frozenset(
    (
        *("mr", "mrs", "ms", "miss", "dr", "prof", "professor", "sir", "lord", "lady", "president", "king", "queen"),
        *("prince", "princess", "pope", "saint", "general", "captain", "senator", "judge", "rev", "jr", "sr"),
    )
)
"""What may stand before or behind a name, in the place of a word of it."""


def is_another_of_its_kind(subject: str, text: str) -> bool:
    """Whether a text has another number than a normalised subject: "Fiat 125" for "Fiat 126"."""
    own = _numbered(words(subject))
    # In a name "I" is the first; elsewhere in a text it is who asks. What begins with V or X may be a name.
    numbers = [
        place
        for place, word in enumerate(own)
        if (_NUMBER.fullmatch(word) or word == "i") and (place or any(map(str.isdigit, word)))
    ]
    if not numbers:
        return False
    there = _numbered(words(text))
    joined = {*there, *map("".join, pairwise(there))}  # "Mu1" is "Mu 1"
    if all(own[place] in joined or "".join(own[max(0, place - 1) : place + 1]) in joined for place in numbers):
        return False
    return any(_NUMBER.fullmatch(word) for word in there if word not in own)


def _numbered(found: Sequence[str]) -> list[str]:
    """Words with numerals for ordinals: the "3rd" is the "3."."""
    return [_ORDINAL.sub(r"\1", word) for word in found]


def is_another_name(subject: str, text: str, weight: Callable[[str], float]) -> bool:
    """Whether a text, as it was written, has another name's word in the place of a normalised subject's own.

    "Anne Berg" and "Anna Bergman" for "Anna Berg", "14 Oak Street" for "14 Elm Street". Without capital letters nobody
    can tell.
    """
    own = content_words(subject)
    if len(own) < 2 or text.isupper():
        return False
    spoken, there = _spoken(text)
    for place, word in enumerate(own):
        if word in there:
            continue
        for beside, step in ((place - 1, 1), (place + 1, -1)):
            if not 0 <= beside < len(own) or own[beside] not in there:
                continue
            at = there.index(own[beside]) + step
            if 0 <= at < len(there) and _is_another(spoken[at].group(), there[at], place, own, weight):
                first, second = sorted((spoken[at], spoken[at - step]), key=re.Match.start)
                if not re.search(r"[^\w\s'’.&-]", text[first.end() : second.start()]):
                    return True
    return False


@lru_cache(maxsize=256)
def _spoken(text: str) -> tuple[list[re.Match[str]], list[str]]:
    """The words of a text but those that join others, as they were written, and normalised."""
    spoken = [match for match in WORD.finditer(text) if match.group().casefold() not in CONNECTORS]
    return spoken, ["".join(words(normalised(match.group()))) for match in spoken]


def _is_another(written: str, said: str, place: int, own: Sequence[str], weight: Callable[[str], float]) -> bool:
    """Whether a word is a name's, and another one than the subject's at a place: not short for it, nor misspelt."""
    if not written[0].isupper() or said in own or said in FUNCTION_WORDS or said in _TITLES:
        return False
    short, long = sorted((said, own[place]), key=len)
    # An initial; "Ray" for Raymond, but Julia is not short for Julian.
    abbreviated = long.startswith(short) and (len(short) == 1 or (place == 0 and len(long) - len(short) > 2))
    return not abbreviated and spelt_as(said, [own[place]], weight) is None
