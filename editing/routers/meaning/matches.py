"""How a part of a request meets an edit, from what the rule says of the two and from what no rule may overrule."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .known import Known, as_unit
from .pairs import Pair
from .reasons import DENIED, NOTHING, PROTECTED, WHETHER
from .unread import is_unread, likeness
from .wording import asks_whether, is_denied, is_negated

_ODDS = 4.0
"""How much surer the rule must be where an edit's subject is not whole in a part: "Joe Pass" is not Joe DiMaggio, and
Vantrello Drinks not Vantrello Foods, which 1.5 took for one. By cross-validation (`bench/fit_meaning.py`), 1.5 -> 4:
.016 -> .011 of questions about other subjects misfire, and .934 -> .920 of QAEdit's rephrasings and .79 -> .76 of the
aliases are found. A wrong answer is worse than none."""


class Match(NamedTuple):
    """How a request meets an edit: how surely it asks what the edit answers, 0 to 1, and what speaks against it.

    against: one of the numbers in `reasons.py`; None where the rule's evidence says it
    """

    score: float
    against: int | None = NOTHING


def match_of(pair: Pair, score: float, vectors: dict[str, np.ndarray]) -> Match:
    """The match of a pair that the rule gives this score; vectors: of its texts."""
    if _closer_to_protected(pair.known, vectors[pair.masked], vectors.get(pair.whole)):
        return Match(0.0, PROTECTED)
    if asks_whether(pair.masked) and not asks_whether(pair.known.masked):
        return Match(0.0, WHETHER)
    if is_denied(pair.masked) and not is_negated(pair.known.masked):
        return Match(0.0, DENIED)
    if is_unread(pair.masked) or is_unread(pair.known.masked):
        # Without a subject that stands there whole only the edit's own words are known to ask for it.
        return Match(likeness(pair.masked, pair.known.masked) if pair.share == 1 else 0.0)
    return Match(score if pair.share == 1 and not pair.meant else score / (score + _ODDS * (1 - score)), None)


def _closer_to_protected(known: Known, masked: np.ndarray, whole: np.ndarray | None) -> bool:
    """Whether a part is no nearer to an edit than to one of its protected questions."""
    if len(known.vectors) <= 2:
        return False
    vectors = as_unit(known.vectors)
    about, others = vectors[2 : 2 + known.about], vectors[2 + known.about :]
    if (about @ masked >= vectors[0] @ masked).any():
        return True
    return whole is not None and bool((others @ whole >= vectors[1] @ whole).any())
