"""The parts of a request, each beside the edits that it could be about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..tokens import TokenRouter
from .another_subject import is_another_name, is_another_of_its_kind
from .candidates import CandidateIndex
from .known import Known, as_unit
from .sentences import Part, parts_of
from .subject import locate, names_in, normalised, stands_whole, words
from .wording import core, with_stand_in

_TOKENS = 0.25
SHARE = 0.4
"""A part and an edit are compared from this token score on, or from this share of the edit's subject on."""

_WEAK, _WEAK_TOKENS = 2.0, 0.33
"""A subject of less weight than this, "the song" say, names nothing by itself: it takes this token score besides."""

_PASSAGE = 0.75
"""The token score from which a passage's like is taken for it."""

_SUBJECTS = 4
"""As so many subjects one part is read at most: each reading is a text to be encoded."""

_LONGEST_MEANT = 16
"""Words of a question that a sentence before it may say the subject of."""

_MOST = 24
"""Edits that one part is compared with at most: those with the largest token score and cosine together."""


class Pair(NamedTuple):
    """A part of a request, beside an edit that it could be about.

    tokens  the edit's token score for the part; share: how much of the edit's subject stands there
    masked  the part without its frame, `STAND_IN` for the subject, and `whole` with it; "" of a passage's like
    meant   whether the subject stands in a sentence before: "I have a ticket for KV 318. When does it leave?"
    """

    part: Part
    known: Known
    tokens: float
    share: float
    masked: str
    whole: str
    meant: bool = False

    @property
    def needs_whole(self) -> bool:
        """Whether it is compared as it stands too: its subject is not whole there, or something else is protected."""
        return self.share < 1 or len(self.known.vectors) > 2 + self.known.about


def pairs_of(
    request: str,
    known: Sequence[Known],
    index: CandidateIndex,
    tokens: TokenRouter,
    weight: Callable[[str], float],
) -> list[tuple[int, Pair]]:
    """The parts of a request that ask something, each with the edits that it could be about, by their places."""
    parts = parts_of(request)
    asking = [part for part in parts if part.asks or part.open or len(parts) == 1]
    rows = tokens.queries([part.text for part in asking])
    if index.long:
        rows.append(tokens.fingerprint(request))
    texts = [normalised(part.text) for part in asking]
    wholes = [core(text) for text in texts]
    entire = core(normalised(request))
    named_before = [_named_before(part, parts) for part in asking]
    rows_before = tokens.queries([text for text in named_before if text])
    found: list[tuple[int, Pair]] = []
    near: list[tuple[int, Known]] = []
    all_texts = [*texts, *(normalised(text) for text in named_before if text)]
    for place in index.of_request(sorted(set().union(*map(set, [*rows, *rows_before]))), all_texts, _TOKENS):
        one = known[place]
        if one.whole == entire:  # an edit's own prompt, whatever sentences that seems to have
            found.append((place, Pair(Part(request, True, True, 0, False), one, 1.0, 1.0, one.masked, one.whole)))
            continue
        if place in index.long:
            score = index.score(place, set(one.tokens), rows[-1])
            if score >= _PASSAGE:
                found.append((place, Pair(Part(request, True, True, 0, False), one, score, 1.0, "", "")))
            if one.is_passage:
                continue
        near.append((place, one))
    for part, row, text, whole, before in zip(asking, rows, texts, wholes, named_before):
        there = [(place, one) for place, one in near if stands_whole(one.subject, text)]
        named = any(not _is_weak(one, weight) for _, one in there)
        pairs = []
        for place, one in there if named else near:
            score = index.score(place, set(one.tokens), row)
            weak = _is_weak(one, weight)
            enough = score >= (_WEAK_TOKENS if weak else _TOKENS)
            if (weak and not enough) or is_another_of_its_kind(one.subject, text):
                continue
            found_at = locate(one.subject, text, weight, 0.0 if enough else SHARE)
            if found_at.share < 1 and is_another_name(one.subject, part.text, weight):
                continue
            if enough or found_at.share >= SHARE:
                pairs.append((place, Pair(part, one, score, found_at.share, found_at.masked, whole)))
        if before and not pairs:
            meant = _meant(before, near, weight)
            pairs = [(place, Pair(part, one, 0.0, 1.0, with_stand_in(text), whole, True)) for place, one in meant]
        found += [(place, pair._replace(masked=core(pair.masked))) for place, pair in _nearer(pairs, weight)]
    return found


def _named_before(part: Part, parts: Sequence[Part]) -> str:
    """The sentence before a question that itself names nobody, which may say whom it is about; else ""."""
    place = parts.index(part)
    if not place or not part.asks or len(part.text.split()) > _LONGEST_MEANT or names_in(part.text):
        return ""
    return "" if parts[place - 1].asks else parts[place - 1].text


def _meant(before: str, near: list[tuple[int, Known]], weight: Callable[[str], float]) -> list[tuple[int, Known]]:
    """The edits about the one subject that a sentence names in full."""
    text = normalised(before)
    there = [(place, one) for place, one in near if not _is_weak(one, weight) and stands_whole(one.subject, text)]
    subjects = {one.subject for _, one in there}
    longest = max(subjects, key=len, default="")
    if any(subject not in longest for subject in subjects) or is_another_of_its_kind(longest, text):
        return []
    return [(place, one) for place, one in there if one.subject == longest]


def _is_weak(known: Known, weight: Callable[[str], float]) -> bool:
    return sum(map(weight, words(known.subject))) < _WEAK


def _nearer(pairs: list[tuple[int, Pair]], weight: Callable[[str], float]) -> list[tuple[int, Pair]]:
    """Of the edits for one part those about the few subjects that it most likely names.

    Where one is named in full, what has only a name or two in common is left out, and so is "Berlin" beside "the Berlin
    Wall".
    """
    whole = {pair.known.subject for _, pair in pairs if pair.share == 1}
    near = [
        (place, pair)
        for place, pair in pairs
        if pair.share < 1 or not any(pair.known.subject in other and pair.known.subject != other for other in whole)
    ]
    if any(pair.share == 1 and not _is_weak(pair.known, weight) for _, pair in near):
        near = [one for one in near if one[1].share == 1]
    near.sort(key=lambda one: -(one[1].share + one[1].tokens))
    read = list(dict.fromkeys(pair.masked for _, pair in near))[:_SUBJECTS]
    return [one for one in near if one[1].masked in read]


def limited(pairs: Sequence[tuple[int, int, Pair]], vectors: dict[str, np.ndarray]) -> list[tuple[int, int, Pair]]:
    """Of the pairs of one part at most `_MOST`."""
    by_part: dict[tuple[int, str], list[tuple[int, int, Pair]]] = {}
    for one in pairs:
        by_part.setdefault((one[0], one[2].part.text), []).append(one)
    kept = []
    for of_part in by_part.values():
        if len(of_part) > _MOST:
            of_part.sort(key=lambda one: -_promise(one[2], vectors))
        kept += of_part[:_MOST]
    return kept


def _promise(pair: Pair, vectors: dict[str, np.ndarray]) -> float:
    return pair.tokens + float(as_unit(pair.known.vectors[0]) @ vectors[pair.masked])
