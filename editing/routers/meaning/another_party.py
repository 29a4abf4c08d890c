"""What is asked of somebody or something else that a question names by an edit's subject: "its rival", "its wife"."""

from __future__ import annotations

import re
from collections.abc import Collection
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


def without_party(asked: str, known: Collection[str]) -> list[str]:
    """A question with the subject for what it calls by it: "who leads its rival?" as "who leads it?".

    asked: its subject put aside; known: words that say what the edit asks for. What is called with these alone is no
    party: "the head office of it" is where it is. [] where the question calls nothing so.
    """
    return list(islice(dict.fromkeys(_readings(asked, known)), _MOST))


def _readings(asked: str, known: Collection[str]):
    for found in _ITS.finditer(asked):
        words = found[1].split()
        for count in range(1, len(words) + 1):
            called = " ".join(words[:count])
            end = found.start(1) + len(" " + called)
            if _is_party(called, known):
                rest = asked[end:]
                if rest.startswith("'s "):
                    yield f"{asked[: found.start()]}its {rest[3:]}"
                else:
                    yield f"{asked[: found.start()]}{STAND_IN}{rest}"
    for place in re.finditer(rf"\b{STAND_IN}\b", asked):
        for start in _STARTS.finditer(asked, 0, place.start()):
            within = asked[start.end() : place.start()]
            join = _JOINS.search(f"{within} ".replace("  ", " "))
            if join is None or not _is_party(within[: join.start()], () if join[1] in _GOES_ON else known):
                continue
            yield asked[: start.start()] + STAND_IN + asked[place.end() :]
            if join[1] in _GOES_ON:
                yield f"{asked[: start.start()]}{STAND_IN}?"


_EVENT = re.compile(
    r"(tion|sion|ment|ity|ness|ance|ence|ship|hood|ing|roll|end|start|beginning|rise|fall|life|time)s?$"
)
"""How nouns end that name what a subject does or is, and no other party: "the conclusion of it", "its activity"."""


def _is_party(called: str, known: Collection[str]) -> bool:
    """Whether a noun and what stands before it call something that the edit's question does not speak of."""
    said = content_words(called)
    if not said or _EVENT.search(said[-1]):
        return False
    return not any(word in known or word.rstrip("s") in known for word in said)
