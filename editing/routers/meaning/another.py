"""Requests that ask for something else than an edit beyond doubt, whatever a fitted rule makes of their likeness."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import numpy as np

from .another_of_a_row import asks_for_another_of_a_row
from .another_party import names_party, without_party
from .another_subject import goes_on
from .contrary import asks_the_contrary
from .decoys import Decoys, Profile
from .encoder import Encoder
from .pairs import Pair
from .rule import EditSide
from .subject import STAND_IN, content_words
from .wording import answer_kind, is_task

_EXACT = ((0.95, 0.95, 0.05), (0.9, 0.8, 0.2))
"""From which cosines on a request and an edit are in a relation's own words, where each is nearer by so much to its own
relation than to the other's."""

_HOW = re.compile(r"^\W*(why\b|how (?:do|can|should|could|would) (?:i|we|you|one) (?:\w+ly )?(\w+)|how to (\w+))")
"""How something is done, or why: "how do I install it?", with the verb."""

_PARTY = ((0.55, 0.05), (0.4, 0.15))
"""From which cosine with an edit's question on, and by how much nearer, what is read without its party is it."""

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

_ONLY_WHO = re.compile(rf"^\W*({STAND_IN}( currently| now)? is|who( currently| now)? is {STAND_IN})\W*$")
_NOW = frozenset(("current", "currently", "now", "present", "today", "called", "holds", "held", "hold", "exactly"))
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


def asks_another(pair: Pair, request: Profile, edit: EditSide, decoys: Decoys, encoder: Encoder) -> bool:
    """Whether a part asks for something else than an edit beyond doubt: of another subject, time or party, say.

    request, edit: both as the decoys see them. What costs a pass of the encoder is asked last.
    """
    asked, held = pair.masked, edit.masked
    if _is_in_words_of_another(request, edit.profile, decoys.names):
        return True
    nearest = np.flatnonzero(edit.profile.kin)
    kin = {decoys.names[place]: decoys.kinds[place] for place in nearest}
    if asks_about_answer(asked, held, kin) or asks_what_answer_does(asked, held, kin):
        return True
    if _ONLY_WHO.match(held) and set(content_words(asked)) - _PLAIN - _NOW:
        return True  # "Who appoints it?" of an edit that says who the holder of an office is
    known = known_words(edit)
    if (is_task(asked) and not is_task(held)) or _asks_how(asked, known, kin):
        return True
    wordings = [text for place in nearest for text in decoys.wordings[place]]
    if asks_the_contrary(asked, held, wordings) or asks_for_another_of_a_row(asked, held, wordings):
        return True
    if pair.share == 1 and goes_on(pair.known.subject, pair.part.text, known):
        return True
    if names_party(asked, known) and not names_party(held, ()):
        return True
    readings = without_party(asked, known)
    if not readings:
        return False
    own = edit.profile.vector
    # "Who leads its rival?": what is nearer to the edit with the subject in the rival's place is asked of the rival.
    likest = float((encoder.encode(readings).numpy() @ own).max())
    return any(likest > least and likest - float(request.vector @ own) > nearer for least, nearer in _PARTY)


def known_words(edit: EditSide) -> frozenset[str]:
    """The words that say what an edit asks for, and whom it is about: its own, and those of its relation's wordings."""
    return edit.words.union(edit.said)


def _asks_how(asked: str, known: Collection[str], kin: Mapping[str, Collection[str]]) -> bool:
    """Whether it is asked how something else is done than what an edit's words say, or why something is."""
    found = _HOW.match(asked)
    if found is None or {"manner", "reason"} & set().union(*kin.values()):
        return False
    starts = {word[:4] for word in known}
    verb = found[2] or found[3]
    return verb is None or verb[:4] not in starts


def _is_in_words_of_another(request: Profile, edit: Profile, names: list[str]) -> bool:
    """Whether each is in the very words of a relation, and these are two: "who published it?", "who wrote it?"."""
    if names[int(request.relations.argmax())] == _DEFINITION:
        return False
    apart = min(_apart(request.relations, edit.kin), _apart(edit.relations, request.kin))
    return any(
        request.relations.max() >= asked and edit.relations.max() >= held and apart >= nearer
        for asked, held, nearer in _EXACT
    )


def _apart(relations: np.ndarray, kin: np.ndarray) -> float:
    """By how much a text is nearer to another relation than to these."""
    return float(relations[~kin].max() - relations[kin].max())


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
