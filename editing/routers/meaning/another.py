"""Requests that ask for something else than an edit beyond doubt, whatever a fitted rule makes of their likeness."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import numpy as np

from .decoys import Decoys, Profile
from .subject import STAND_IN, content_words
from .wording import answer_kind

_EXACT, _NEARER = 0.95, 0.05
"""From this cosine on a text is a relation's own wording, where it is nearer by this much to it than to the other's."""

_DEFINITION = "definition"
"""The relation of "who is it?": what is left, too, where more than the subject was put aside."""

_NESTED = re.compile(
    rf"\b([^\W\d_]+) (?:of|in|at|for|by) (?:the ([\w' -]{{2,40}}?) (?:of|in|at|for|by|to|that|which|who|whose|where) "
    rf"{STAND_IN}\b|its ([\w' -]{{2,40}}))"
)
_PLAIN = frozenset(
    (
        *("name", "title", "identity", "office", "position", "post", "role", "capacity", "seat", "job", "act"),
        *("date", "year", "time", "place", "location", "site", "city", "town", "country", "kingdom", "republic"),
        *("person", "people", "company", "kind", "type", "sort", "form", "part", "member", "one", "half", "most"),
        *("all", "any", "some", "each", "full", "rest", "head", "piece", "number", "word", "tongue", "start", "end"),
    )
)
"""Words before "of" that ask for nothing more: "the city of its birth", "the post of the president of it"."""

_RELATION = (
    rf"\bthe ([\w' -]{{2,40}}?) (?:of|in|at|for|by|to|with) {STAND_IN}\b|\bits ([\w'-]+)|\bthe {STAND_IN} ([\w'-]+)"
)
"""A relation to the subject, as a question names it: "the capital of it", "its capital"."""

_OF_SUBJECT = re.compile(_RELATION)
_IS = re.compile(rf"^\W*(who|where|when)('s| is| was| are| were| will be) ({_RELATION})\W*$")
_OPENS = (
    ("person", re.compile(r"^\W*((by|to|with|from) )?who(m|se)?\b")),
    (
        "place",
        re.compile(r"^\W*((in|at|from) )?(where\b|(which|what) (country|city|town|village|state|continent)\b)"),
    ),
    ("time", re.compile(r"^\W*((in|since|until) )?(when\b|(which|what) (year|century|month)\b)")),
)
_IS_ONE = (
    *("is", "was", "are", "were", "be", "became", "becomes", "serves", "served", "holds", "held", "acts", "acted"),
    *("works", "worked", "does", "did", "do", "has", "had", "have", "will", "would", "can", "could", "currently"),
    *("plays", "played", "fills", "filled", "gets", "got", "now"),
)
"""Verbs after "who" that still ask who somebody is: "who serves as its leader?"."""

_DOES_TO = re.compile(rf"^\W*who (?!({'|'.join(_IS_ONE)})\b)[a-z]+( (?!its?\b)[a-z]+){{0,2}} ({_RELATION})")
_DOES = re.compile(rf"\b(did|does|do) (the [\w' -]{{2,40}}? of {STAND_IN}|its [\w'-]+) [a-z]+")


def asks_another(asked: str, request: Profile, held: str, edit: Profile, decoys: Decoys) -> bool:
    """Whether a request asks for another relation than an edit, or for something about the edit's answer.

    asked, held: the request's part and the edit's question, their subject put aside; request, edit: as the decoys see
    these.
    """
    if _is_in_words_of_another(request, edit, decoys.names):
        return True
    kin = {decoys.names[place]: decoys.kinds[place] for place in np.flatnonzero(edit.kin)}
    return asks_about_answer(asked, held, kin) or asks_what_answer_does(asked, held, kin)


def _is_in_words_of_another(request: Profile, edit: Profile, names: list[str]) -> bool:
    """Whether each is in the very words of a relation, and these are two: "who published it?", "who wrote it?"."""
    if request.relations.max() < _EXACT or edit.relations.max() < _EXACT:
        return False
    if names[int(request.relations.argmax())] == _DEFINITION:
        return False
    return _apart(request.relations, edit.kin) and _apart(edit.relations, request.kin)


def _apart(relations: np.ndarray, kin: np.ndarray) -> bool:
    return bool(relations[kin].max() <= relations[~kin].max() - _NEARER)


def asks_about_answer(asked: str, held: str, kin: Collection[str]) -> bool:
    """Whether what an edit asks for is only a part of what is asked: "the population of the capital of it".

    kin: the names of the relations that the edit is nearest to.
    """
    found = _NESTED.search(asked)
    if found is None or _NESTED.search(held):
        return False
    outer, inner = found[1], (found[2] or found[3]).strip()
    there, within = content_words(held), content_words(inner)
    if outer in _PLAIN or not content_words(outer) or not within or any(word[:4] == outer[:4] for word in there):
        return False
    return inner in kin or (inner != "people" and set(within).issubset(there))


def asks_what_answer_does(asked: str, held: str, kin: Mapping[str, Collection[str]]) -> bool:
    """Whether something else is asked of an edit's answer: "who governs its capital?", "what did its mother do?".

    kin: by the names of the relations that the edit is nearest to, the kinds of answer that these are asked for with.
    """
    there = set(content_words(held))
    said = [next(filter(None, found.groups())) for found in _OF_SUBJECT.finditer(asked)]
    of_edit = [one for one in said if one in kin or there.issuperset(content_words(one) or [one])]
    if _IS.match(asked) or not of_edit:
        return False
    kinds = set().union(*([kin[one] for one in of_edit if one in kin] or kin.values()))
    wanted = next((kind for kind, opening in _OPENS if opening.match(asked)), "")
    if wanted and wanted != answer_kind(held) and wanted not in kinds:
        return True
    # Of somebody: "who succeeded its leader?" and "what does its leader say?" ask nothing that the edit answers.
    return "person" in kinds and (_DOES_TO.match(asked) is not None or _DOES.search(asked) is not None)
