"""Texts about another subject than an edit's, though much of its name stands there: another number, another name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from itertools import pairwise

from .subject import CONNECTORS, FUNCTION_WORDS, WORD, content_words, normalised, place_of, spelt_as, words

_NUMBER = re.compile(r"\w*\d\w*|[vx]|[ivx]{2,4}")
"""A word that tells one of a series from the others: "Fiat 126", "Clement X"."""
_YEAR = re.compile(r"1[5-9]\d\d|20\d\d")
_ORDINAL = re.compile(r"^(\d+)(st|nd|rd|th)$")
_TITLES = frozenset(
    (
        *("mr", "mrs", "ms", "miss", "dr", "prof", "professor", "sir", "lord", "lady", "president", "king", "queen"),
        *("prince", "princess", "pope", "saint", "general", "captain", "senator", "judge", "rev", "jr", "sr"),
        *(
            "hon",
            "major",
            "colonel",
            "lieutenant",
            "sergeant",
            "admiral",
            "commander",
            "bishop",
            "archbishop",
            "cardinal",
        ),
        *("count", "baron", "duke", "duchess", "countess", "dame", "father", "sister", "brother", "rabbi", "sheikh"),
        *("earl", "marquess", "marquis", "viscount", "viscountess", "baroness", "emperor", "empress", "tsar", "sultan"),
        *("emir", "khan", "raja", "maharaja", "begum", "imam", "ayatollah", "mahant", "swami", "sri", "shri", "hajji"),
        *("fr", "friar", "abbot", "deacon", "pastor", "reverend", "monsignor", "chief", "brigadier", "gen"),
        *("col", "capt", "lt", "maj", "sgt", "corporal", "commodore", "dean", "rector", "madame", "monsieur", "herr"),
        *("frau", "don", "st", "ste", "blessed", "infante", "archduke", "margrave", "mx", "mademoiselle", "signor"),
        *("chancellor", "minister", "ambassador", "justice", "governor", "mayor", "coach", "director", "chef", "nurse"),
    )
)
"""What may stand before or behind a name, in the place of a word of it."""


_JOINED = re.compile(r"-(based|related|owned|born|led|style|like|made|branded|specific|only|wide|free)\b", re.I)
_INITIALS = frozenset(
    ("CEO", "CFO", "CTO", "COO", "HQ", "ID", "URL", "IP", "VAT", "ISBN", "USA", "UK", "EU", "US", "FAQ")
)
_DATES = frozenset(
    (
        *("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday", "january", "february", "march"),
        *("april", "may", "june", "july", "august", "september", "october", "november", "december", "easter"),
        *("christmas",),
    )
)
"""What may stand beside a name with a capital letter, and is none of it."""

_BEHIND = re.compile(r" ([^\W_][\w'’.-]*)|(-[^\W_][\w-]*)|: ([^\W_]\w*)")
_BEFORE = re.compile(r"(?:^|([^\W_][\w'’.]*)([ -]))(?:(of|de|van|von|der|del|di) )?$")


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


def goes_on(subject: str, text: str, known: Collection[str]) -> bool:
    """Whether a text, as it was written, has a longer name where a normalised subject stands whole in it.

    "Brightwater Analytics Asia", "Mu 7: Afterlight", "Little Brightwater Analytics", "tapirdb-proxy". known: words that
    the edit's question or its relation has: "Brightwater Analytics CEO" is no name.
    """
    plain, lower = " ".join(unicodedata.normalize("NFKC", text).split()), normalised(text)
    place = place_of(subject, lower)
    if place is None or len(lower) != len(plain):
        return False
    before, behind = plain[: place[0]], plain[place[1] :]
    title = _is_title_case(before + behind)
    found = _BEHIND.match(behind)
    if found is not None:
        if found[2]:
            return not _JOINED.match(found[2])
        if _is_of_name(found[1] or found[3], known, title):
            return True
    found = _BEFORE.search(before)
    if found is None or not found[1] or found[2] == "-":
        return found is not None and found[2] == "-" and len(found[1]) > 2
    # What begins a sentence has a capital letter anyhow.
    begins = found.start(1) == 0 or re.search(r"[.!?:\"“(] ?$", before[: found.start(1)]) is not None
    return not begins and not found[1][0].isdigit() and _is_of_name(found[1], known, title)


def _is_of_name(written: str, known: Collection[str], title: bool) -> bool:
    """Whether a word beside a name is one of it."""
    bare = re.sub(r"['’]s?$|\.$", "", written)
    (word, *_) = words(normalised(bare)) or ("",)
    if _YEAR.fullmatch(word) or word in FUNCTION_WORDS or word in _TITLES or word in _DATES or word in known:
        return False
    if bare[0].isdigit() or re.fullmatch(r"[IVX]{2,5}", bare):
        return True
    return bare[0].isupper() and not title and bare not in _INITIALS


def _is_title_case(text: str) -> bool:
    """Whether nearly all words are written with a capital letter, so that this says nothing of a name."""
    written = [match.group() for match in WORD.finditer(text) if len(match.group()) > 2][1:]
    return len(written) > 1 and sum(word[0].isupper() for word in written) > 0.7 * len(written)


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
