"""Which stored edits a request could be about: an inverted index over prompts' tokens and subjects' words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from .subject import words

_EXTRA = 0.1
"""What a query's own tokens weigh in the score: as in `TokenRouter`."""


class CandidateIndex:
    """Finds the edits that share their rare tokens, or the weightiest word of their subject, with a request.

    prompts   the token ids of each edit's prompt
    subjects  each edit's normalised subject, "" where it has none
    long      whether its prompt is a passage, or a question in several sentences
    rarity    int `[vocabulary]`: what a token weighs
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        subjects: Sequence[str],
        long: Sequence[bool],
        rarity: np.ndarray,
        weight: Callable[[str], float],
    ) -> None:
        self.rarity = rarity
        self._rarities = rarity.tolist()
        self.long = frozenset(place for place, is_long in enumerate(long) if is_long)
        lengths = np.fromiter(map(len, prompts), dtype=np.int64, count=len(prompts))
        tokens = np.fromiter((token for row in prompts for token in row), dtype=np.int64, count=int(lengths.sum()))
        edits: np.ndarray = np.repeat(np.arange(len(prompts)), lengths)
        rare = rarity[tokens] > 0  # others add nothing, and of such as "?" every edit has one
        order: np.ndarray = np.argsort(tokens[rare], kind="stable")
        self._edits = edits[rare][order]
        self._starts: np.ndarray = np.asarray(np.searchsorted(tokens[rare][order], np.arange(len(rarity) + 1)))
        self.own = np.bincount(edits, weights=rarity[tokens], minlength=len(prompts))
        self._by_word: dict[str, list[int]] = {}
        for edit, subject in enumerate(subjects):
            for key in _keys(subject, weight):
                self._by_word.setdefault(key, []).append(edit)

    def sharing(self, tokens: Sequence[int], floor: float) -> list[int]:
        """The edits whose token score for these distinct tokens could be `floor` or more."""
        # Only edits that have one of the tokens are touched: `zeros` takes memory where it is written.
        shared = np.zeros(len(self.own))
        postings = [self._edits[self._starts[token] : self._starts[token + 1]] for token in tokens]
        for token, edits in zip(tokens, postings):
            shared[edits] += self._rarities[token]
        touched = np.concatenate(postings) if postings else np.zeros(0, dtype=np.int64)
        enough = touched[shared[touched] >= floor * np.maximum(self.own[touched], 1)]
        return enough.tolist()

    def score(self, edit: int, own: set[int], tokens: Sequence[int]) -> float:
        """The token score of an edit, whose tokens are `own`, for distinct token ids (see `TokenRouter`)."""
        rarity = self._rarities
        asked = shared = 0
        for token in tokens:
            asked += rarity[token]
            shared += rarity[token] if token in own else 0
        whole = self.own[edit] + _EXTRA * (asked - shared)
        return shared / whole if whole > 0 else 0.0

    def of_request(self, tokens: Sequence[int], texts: Sequence[str], floor: float) -> list[int]:
        """The edits that some part of a request could be about.

        tokens: the distinct token ids of all its parts; texts: the parts, normalised. No part can share more with an
        edit than all do, so what stays below `floor` here needs no second look.
        """
        found = set(self.sharing(tokens, floor))
        for text in texts:
            there = words(text)
            for key in {*there, *map("".join, pairwise(there))}:
                found.update(self._by_word.get(key, ()))
        return sorted(found)


def _keys(subject: str, weight: Callable[[str], float]) -> list[str]:
    """By which word a subject is found; in a script without spaces, by its first two characters."""
    found = words(subject)
    if not found:
        return []
    if len(found) > 1 and all(len(word) == 1 for word in found[:2]):
        return [found[0] + found[1]]
    if len(found) == 1:
        return list(found)
    return [max(found, key=lambda word: (weight(word), len(word)))]
