"""What is asked of somebody or something else that a question names by an edit's subject: "its rival", "its wife"."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from itertools import islice

from .subject import STAND_IN, content_words

_STARTS = re.compile(r"\b(the|a|an|our|my|your|their|any|this|that|some|every|each) (?=\w)")
_JOINS = re.compile(
    r" (that|which|who|whom|whose|where|when|of|in|for|at|from|by|to|on|behind|beside|besides|near|with|before|after|"
    r"under|over|inside|outside|between|around|next (door )?to|in front of|instead of|than) "
)
_GOES_ON = frozenset(("that", "which", "who", "whom", "whose", "where", "when"))
"""After these the party's description goes on behind the subject: "the tool that it was made from"."""

_ITS = re.compile(r"\bits((?: [\w-]+){1,3})(?='s\b|[ ?.,!]|$)")
_MOST = 8
"""Readings of one question that are compared: each is a text to be encoded."""

_EVENT = re.compile(
    r"(tion|sion|ment|ity|ness|ance|ence|ship|hood|ing|roll|end|start|beginning|rise|fall|life|time)s?$"
)
"""How nouns end that name what a subject does or is, and no other party: "the conclusion of it", "its activity"."""

_NAMING = r"(?:called|named|being|known|referred|including|regarding|concerning|according|renowned|titled|entitled)\b"
_DESCRIBED = re.compile(
    rf"\b(?:the|an?|our|my|your|any|that) (?:[\w'-]+ ){{0,3}}?(?!(?:in|at|on|by|for|to|from|of) which)([\w-]+)"
    rf" (?:that|which|who|whose|whom|where) (.*\b{STAND_IN}\b.*)$"
)
_DOING = re.compile(
    rf"\b(?:the|an?|our|my|your|any|that) (?:[\w'-]+ ){{0,3}}?([\w-]+) (?!{_NAMING})([\w-]+(?:ing|ed)|given|run|made)"
    rf"(?: (?!of\b)\w+){{0,2}}? (?:the |our |my )?{STAND_IN}\b"
)
_BESIDE = re.compile(
    rf"\b([\w-]+) (opposite|below|above|beneath|alongside|besides?|behind|near|nearest to|next (?:door )?to|around|"
    rf"outside|across from|in front of|adjacent to|parallel to) (?:the |our |my )?{STAND_IN}\b"
)
_PEOPLE = (
    *("wife", "husband", "spouse", "mother", "father", "parents?", "brother", "sister", "son", "daughter", "child"),
    *("children", "uncle", "aunt", "cousin", "twin", "friend", "neighbou?r", "boss", "staff", "partner", "colleague"),
    *("successor", "predecessor", "understudy", "assistant", "chemist", "cook", "goalkeeper", "admin", "rivals?"),
    *("competitors?", "suppliers?", "vendor", "customers?", "founders?", "owners?", "makers?", "drummer", "singer"),
    *("organi[sz]er", "illustrator", "translator", "architect", "designer", "engineers?", "driver", "teacher"),
    *("students?", "pupils?"),
)
_PERSON = re.compile(rf"\bits (?:[\w-]+ ){{0,2}}?({'|'.join(_PEOPLE)})\b(?!\W*$| (?:is|was|are|were)\W*$)")
_WHO_IS = re.compile(r"^\W*(?:who|what)(?:'s| is| was| are| were) (?:the name of )?its\b")


def without_party(asked: str, known: Collection[str]) -> list[str]:
    """A question with the subject for what it calls by it: "who leads its rival?" as "who leads it?".

    asked: its subject put aside; known: words that say what the edit asks for. What is called with these alone is no
    party: "the head office of it" is where it is. [] where the question calls nothing so.
    """
    return list(islice(dict.fromkeys(_readings(asked, known)), _MOST))


def _readings(asked: str, known: Collection[str]) -> Iterator[str]:
    for found in _ITS.finditer(asked):
        words = found[1].split()
        for count in range(1, len(words) + 1):
            called = " ".join(words[:count])
            if not _is_party(called, known):
                continue
            before, rest = asked[: found.start()], asked[found.start(1) + 1 + len(called) :]
            yield f"{before}its {rest[3:]}" if rest.startswith("'s ") else f"{before}{STAND_IN}{rest}"
    for place in re.finditer(rf"\b{STAND_IN}\b", asked):
        for start in _STARTS.finditer(asked, 0, place.start()):
            within = asked[start.end() : place.start()]
            join = _JOINS.search(f"{within} ".replace("  ", " "))
            if join is None or not _is_party(within[: join.start()], () if join[1] in _GOES_ON else known):
                continue
            yield asked[: start.start()] + STAND_IN + asked[place.end() :]
            if join[1] in _GOES_ON:
                yield f"{asked[: start.start()]}{STAND_IN}?"


def names_party(asked: str, known: Collection[str]) -> bool:
    """Whether a question speaks of another party beyond doubt: "the firm suing it", "the café below it", "its cook".

    asked, known: as in `without_party`. What the edit's own words describe is its answer, "the firm that owns it".
    """
    for pattern in (_DESCRIBED, _DOING, _BESIDE):
        found = pattern.search(asked)
        if found is not None and not _is_known(found[1], known) and not _is_known(found[2], known):
            return True
    found = _PERSON.search(asked)
    return found is not None and not _is_known(found[1], known) and _WHO_IS.match(asked) is None


def _is_known(text: str, known: Collection[str]) -> bool:
    starts = {word[:5] for word in known}
    return any(word[:5] in starts for word in content_words(text))


def _is_party(called: str, known: Collection[str]) -> bool:
    """Whether a noun and what stands before it call something that the edit's question does not speak of."""
    said = content_words(called)
    if not said or _EVENT.search(said[-1]):
        return False
    return not any(word in known or word.rstrip("s") in known for word in said)
