"""Whom a text is about: an edit's subject, found again in a request and put aside, so that what is asked remains."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

STAND_IN = "it"
"""What stands for the subject where it was put aside: the word of the decoys too."""

WORD = re.compile(r"[^\W_]+")
CONNECTORS = frozenset(
    (
        *("of", "the", "de", "la", "le", "du", "des", "del", "der", "den", "van", "von", "und", "y", "and", "&"),
        *("in", "on", "for", "to", "a", "an", "di", "da", "al", "el", "e"),
    )
)
FUNCTION_WORDS = frozenset(
    (
        *("a", "an", "the", "of", "in", "on", "at", "to", "for", "from", "by", "with", "and", "or", "is", "are"),
        *("was", "were", "be", "been", "has", "have", "had", "do", "does", "did", "it", "its", "he", "she"),
        *("his", "her", "they", "their", "them", "this", "that", "these", "those", "who", "whom", "whose"),
        *("what", "which", "when", "where", "why", "how", "s", "t", "as", "not", "no", "can", "could", "will"),
        *("would", "i", "you", "we", "me", "my", "your", "our", "there", "any", "some", "please", "tell", "name"),
        *("called", "known"),
    )
)
_NO_SPACES = re.compile(r"[぀-ヿ㐀-䶿一-鿿豈-﫿ｦ-ﾟ฀-๿຀-໿က-႟ក-៿]")
_SHORTEST_MISSPELT = 5
"""Letters: of four, WKRB and WKRP are two stations."""
_LONG = 8
"""Letters from which on a name, too, may be another spelling of one."""
_APPOSED = re.compile(
    rf"\bthe ((city|town|village|island|state|kingdom|republic|province|county|district|municipality|country) of"
    rf"|company|firm|band|film|movie|song|novel|album|series|river|lake|museum|team|club) {STAND_IN}\b"
)
"""What a subject is said to be beside its name, and asks nothing: "the town of Ostania"."""
_LATIN = re.compile(r"^[\u0030-\u024f\u1e00-\u1eff\u0300-\u036f]+$")


def normalised(text: str) -> str:
    """Lower case, one space for any, full-width and ornate forms made plain."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub("[‘’`´]", "'", re.sub("[“”„«»「」『』]", '"', text)).split())


@lru_cache(maxsize=1 << 14)
def words(text: str) -> tuple[str, ...]:
    """The words of a normalised text, without accents; where a script knows no spaces, its characters."""
    found: list[str] = []
    for word in WORD.findall(text):
        if _NO_SPACES.search(word):
            found += list(word)
        else:
            found.append(_plain(word))
    return tuple(found)


def _plain(word: str) -> str:
    """A word of Latin letters without its accents: names are asked for with and without them."""
    if word.isascii() or not _LATIN.match(word):
        return word
    return "".join(letter for letter in unicodedata.normalize("NFD", word) if not unicodedata.combining(letter))


def holds_stand_in(text: str) -> bool:
    """Whether a question has `STAND_IN` where its subject stands."""
    return STAND_IN in words(normalised(text))


def content_words(text: str) -> list[str]:
    """The words of a normalised text that say something."""
    return [word for word in words(text) if word not in FUNCTION_WORDS]


def names_in(text: str) -> set[str]:
    """The words of a text, as it was written, that are written as names, normalised."""
    found: set[str] = set()
    for place, match in enumerate(WORD.finditer(text)):
        if match.group()[0].isupper() or match.group().isdigit():
            word = words(normalised(match.group()))
            if place or word[0] not in FUNCTION_WORDS:
                found.update(word)
    return found - FUNCTION_WORDS


class Found(NamedTuple):
    """A subject in a text: the text with `STAND_IN` for it, and how much of the subject is there, 0 to 1."""

    masked: str
    share: float


def locate(subject: str, text: str, weight: Callable[[str], float], floor: float = 0.0) -> Found:
    """Find a normalised subject in a normalised text, whole or by the words of it that stand together.

    weight: how much a word says about whom one means; floor: the share below which it does not matter what is there.
    Words that are nearly alike count as one: names are misspelt, bent and put into the genitive.
    """
    if not subject:
        return Found(text, 0.0)
    place = place_of(subject, text)
    if place is not None:
        return Found(_without(text, *place), 1.0)
    wanted = words(subject)
    total = sum(weight(word) for word in wanted)
    likely = sum(weight(word) for word in wanted if word in words(text) or _may_be_misspelt(word, text))
    if likely < floor * total:
        return Found(text, 0.0)
    spans = _spans(text)
    matched = [
        (i, match) for i, (word, _, _) in enumerate(spans) if (match := spelt_as(word, wanted, weight)) is not None
    ]
    best: tuple[float, int, int] = (0.0, 0, 0)
    for first in range(len(matched)):
        seen: set[str] = set()
        last = first
        for j in range(first, len(matched)):
            if matched[j][0] - matched[last][0] > 4:
                break
            last = j
            seen.add(matched[j][1])
            share = sum(weight(word) for word in seen)
            if share > best[0] + 1e-9:
                best = share, matched[first][0], matched[j][0]
    if not best[0] or total <= 0:
        return Found(text, 0.0)
    if all(word in FUNCTION_WORDS for word, _, _ in spans[best[1] : best[2] + 1]):
        return Found(text, 0.0)
    return Found(_without(text, spans[best[1]][1], spans[best[2]][2]), min(1.0, best[0] / total))


def stands_whole(subject: str, text: str) -> bool:
    """Whether a normalised subject stands in a normalised text letter for letter."""
    return bool(subject) and place_of(subject, text) is not None


def place_of(subject: str, text: str) -> tuple[int, int] | None:
    """Where a normalised subject stands in a normalised text letter for letter, its start and end; None: nowhere."""
    start = text.find(subject)
    while start >= 0:
        end = start + len(subject)
        free_left = start == 0 or not (text[start - 1].isalnum() and subject[0].isalnum())
        free_right = end == len(text) or not (text[end].isalnum() and subject[-1].isalnum())
        if (free_left or _NO_SPACES.match(subject[0])) and (free_right or _NO_SPACES.match(subject[-1])):
            return start, end
        start = text.find(subject, start + 1)
    return None


def _without(text: str, start: int, end: int) -> str:
    before, after = text[:start].rstrip(), text[end:]
    quoted = before[-1:] in ("'", '"')
    before = re.sub(r"(^|\s)(the|a|an)$", "", before.rstrip(" \"'("))
    possessive = None if quoted else re.match(r"'s?\s+(?=\w)", after)
    if possessive is not None:
        return " ".join(f"{before} its {after[possessive.end() :]}".split())
    after = re.sub(r"^\s*[\"')]+(?!s\b)", "", after).lstrip()
    masked = re.sub(rf"{STAND_IN} ([?!.,])", rf"{STAND_IN}\1", " ".join(f"{before} {STAND_IN} {after}".split()))
    return _APPOSED.sub(STAND_IN, masked)


@lru_cache(maxsize=256)
def _spans(text: str) -> list[tuple[str, int, int]]:
    spans = []
    for found in WORD.finditer(text):
        if _NO_SPACES.search(found.group()):
            spans += [(text[i], i, i + 1) for i in range(found.start(), found.end())]
        else:
            spans.append((_plain(found.group()), found.start(), found.end()))
    return spans


def _may_be_misspelt(word: str, text: str) -> bool:
    """Whether a text has any word with which `_like` would compare this one."""
    return len(word) >= _SHORTEST_MISSPELT and word[0] in _first_letters(text)


@lru_cache(maxsize=256)
def _first_letters(text: str) -> frozenset[str]:
    return frozenset(word[0] for word in words(text) if len(word) >= _SHORTEST_MISSPELT)


def spelt_as(word: str, wanted: Sequence[str], weight: Callable[[str], float]) -> str | None:
    """The word of `wanted` that a word is, or is misspelt for; None where it is another."""
    if word in wanted:
        return word
    if len(word) < _SHORTEST_MISSPELT or word in FUNCTION_WORDS:
        return None
    return _like(word, wanted, weight(word) <= 1 and len(word) < _LONG)


def _like(word: str, wanted: Sequence[str], known: bool) -> str | None:
    """A word of `wanted` that is spelt nearly so: a letter more, less, other or exchanged; two, of nine letters on.

    known: whether it is a short word, or a name, by itself: Boston is not Bolton misspelt, Katharine is Katherine. Only
    its plural is like it then.
    """
    for other in wanted:
        if word[0] != other[0] or len(other) < _SHORTEST_MISSPELT or abs(len(word) - len(other)) > 2:
            continue
        if any(map(str.isdigit, word + other)):
            continue
        if known:
            if word == f"{other}s" or other == f"{word}s":
                return other
            continue
        start, shorter = 0, min(len(word), len(other))
        while start < shorter and word[start] == other[start]:
            start += 1
        end = 0
        while end < shorter - start and word[-1 - end] == other[-1 - end]:
            end += 1
        most = 1 if shorter < 9 else 2
        differ = max(len(word), len(other)) - start - end
        if len(word) == len(other):  # "analitycs"
            differ = min(differ, sum(a != b for a, b in zip(word, other)))
        if differ <= most or (differ == 2 and sorted(word) == sorted(other)):
            return other
    return None


def guessed(prompt: str, weight: Callable[[str], float]) -> str:
    """The subject of a prompt whose record names none, normalised: its weightiest run of names, or ""."""
    runs: list[list[str]] = []
    open_run: list[str] = []
    previous_end, first = 0, True
    for found in WORD.finditer(prompt):
        word = found.group()
        between = prompt[previous_end : found.start()]
        if open_run and re.search(r"[,;:?!\"“”()]", between):
            runs.append(open_run)
            open_run = []
        name = (word[0].isupper() and not (first and word.casefold() in FUNCTION_WORDS)) or word.isdigit()
        if name or (open_run and word.casefold() in CONNECTORS) or (open_run and between == "'"):
            open_run.append(prompt[previous_end : found.end()] if open_run else word)
        elif open_run:
            runs.append(open_run)
            open_run = []
        previous_end, first = found.end(), False
    runs.append(open_run)
    best, most = "", 0.0
    for run in runs:
        while run and run[-1].strip().casefold() in CONNECTORS | {"'s", "s"}:
            run = run[:-1]
        text = normalised("".join(run))
        said = sum(weight(word) for word in content_words(text))
        if said > most and not text.isdigit():
            best, most = text, said
    return best
