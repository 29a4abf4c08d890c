"""From what a part of a request and an edit have in common to how surely the part asks what the edit answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from math import log1p
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file

from .decoys import DECOYS, SHIPPED, Profile
from .encoder import Encoder
from .sentences import Part
from .subject import content_words, names_in
from .wording import answer_kind, is_compared, is_negated, is_yes_no

VERSION = 5
"""Of the code around the fitted rule: to be raised where what is read out of texts decides any request otherwise, as
`tests/editing/routers/test_rule_identity.py` would tell. Stores record it, with the digest of the data."""

EVIDENCE = (
    *("tokens", "subject", "whole_subject", "cosine", "wording_margin", "relation_margin", "task_margin"),
    *("mention_margin", "relations_alike", "words_more", "words_fewer", "words_shared", "weight_more", "other_answer"),
    *("same_answer", "negated", "compared", "yes_no", "asks", "open", "question_later", "parts_after", "length"),
    *("cosine_whole", "cosine_head", "relation_margin_head", "other_margin_head", "relations_alike_head"),
    *("own_relation", "own_relation_margin", "own_relation_head", "own_relation_margin_head"),
    *("words_explained", "word_explained_least", "own_words_explained", "own_word_explained_least", "other_names"),
    *("kin", "kin_head", "asked_kin", "asked_kin_head"),
    *("words_known", "word_known_least", "own_words_known", "own_word_known_least"),
)
"""What the rule is given, in order."""


class RequestSide(NamedTuple):
    """A part of a request with an edit's subject put aside: `masked`, of which `profile` is made.

    whole: the vector of the part as it stands, where the subject is not whole there; what it says is then not all
    in `masked`. said: the words of `masked` and of the relation that it is nearest to, those that say something.
    """

    part: Part
    masked: str
    profile: Profile
    whole: np.ndarray | None
    said: tuple[str, ...]


class EditSide(NamedTuple):
    """The same of an edit, made once; `words`: those of its question and its subject."""

    words: frozenset[str]
    masked: str
    profile: Profile
    whole: np.ndarray
    said: tuple[str, ...]
    own: np.ndarray
    projected_own: np.ndarray


def evidence(asked: RequestSide, held: EditSide, tokens: float, share: float, encoder: Encoder) -> list[float]:
    """The evidence for one part and one edit.

    tokens: the token score of the part; share: how much of the subject stands there.
    """
    a, h = asked.profile, held.profile
    cosine = float(a.vector @ h.vector)
    projected = float(a.projected @ h.projected)
    near = np.where(held.own, -1.0, a.relations)
    near_projected = np.where(held.projected_own, -1.0, a.projected_relations)
    here, there = set(content_words(asked.masked)), set(content_words(held.masked))
    wanted, given = answer_kind(asked.masked), answer_kind(held.masked)
    own, own_projected = float(a.relations[held.own].max()), float(a.projected_relations[held.projected_own].max())
    apart = a.projected_relations - h.projected_relations
    return [
        tokens,
        share,
        float(share == 1),
        cosine,
        cosine - float(np.where(h.relations > 0.7, -1.0, a.relations).max()),
        cosine - float(near.max()),
        cosine - a.tasks,
        cosine - a.mentions,
        _correlation(a.relations, h.relations),
        log1p(len(here - there)),
        log1p(len(there - here)),
        log1p(len(here & there)),
        log1p(sum(map(encoder.pieces, here - there))),
        float(bool(wanted and given and wanted != given)),
        float(bool(wanted and wanted == given)),
        float(is_negated(asked.masked) != is_negated(held.masked)),
        float(is_compared(asked.masked) and not is_compared(held.masked)),
        float(is_yes_no(asked.masked) and not is_yes_no(held.masked)),
        float(asked.part.asks),
        float(asked.part.open),
        float(asked.part.later),
        min(asked.part.from_end, 3) / 3,
        log1p(len(asked.masked.split())) - log1p(len(held.masked.split())),
        cosine if asked.whole is None else float(asked.whole @ held.whole),
        projected,
        projected - float(near_projected.max()),
        projected - a.projected_other,
        float(np.sort(np.abs(apart))[-5:].mean()),
        # Two wordings that are far from each other are often both near a third one, of the relation that they ask for.
        own,
        own - float(near.max()),
        own_projected,
        own_projected - float(near_projected.max()),
        *_explained(sorted(here), sorted(there), encoder),
        *_explained(sorted(there), sorted(here), encoder),
        # "Minnesota Glacier" is not "Reedy Glacier".
        log1p(len(names_in(asked.part.text) - held.words)),
        # Who asks for the father does not ask for the mother, though either is near the other's relation. By
        # cross-validation, the right one of several edits of a subject is found so in .969 of cases instead of .955,
        # and .030 instead of .037 of other questions about a subject misfire.
        _nearer(a.relations, h.kin),
        _nearer(a.projected_relations, h.projected_kin),
        _nearer(h.relations, a.kin),
        _nearer(h.projected_relations, a.projected_kin),
        # "Pastry" chef is no word of whoever heads a kitchen, "fax" none of telephone numbers.
        *_explained(sorted(here), held.said, encoder),
        *_explained(sorted(there), asked.said, encoder),
    ]


def _nearer(relations: np.ndarray, kin: np.ndarray) -> float:
    """By how much a text is nearer to some relations than to all others."""
    return float(relations[kin].max() - relations[~kin].max())


def _explained(words: Sequence[str], by: Sequence[str], encoder: Encoder) -> tuple[float, float]:
    """How near words are to their nearest ones in another text: on average, by weight, and the one that is farthest."""
    if not words or not by:
        return (1.0, 1.0) if not words else (0.0, 0.0)
    near = (encoder.words(words) @ encoder.words(by).T).max(1)
    weights = np.array([encoder.pieces(word) for word in words])
    return float(near @ weights / weights.sum()), float(near.min())


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one - one.mean(), other - other.mean()
    return float(one @ other / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-12))


class Rule:
    """A mean of small networks over the standardised evidence, fitted by `bench/fit_meaning.py`.

    tensors: "rule.mean", "rule.scale" `[evidence]`, "rule.first" `[networks, evidence, hidden]`, "rule.first_bias",
    "rule.second" `[networks, hidden]`, "rule.second_bias" `[networks]`.
    """

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self._mean, self._scale = tensors["rule.mean"], tensors["rule.scale"]
        self._first, self._first_bias = tensors["rule.first"], tensors["rule.first_bias"]
        self._second, self._second_bias = tensors["rule.second"], tensors["rule.second_bias"]

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """float32 `[pairs]`: how surely each row of evidence `[pairs, evidence]` is of an edit and its question."""
        standard = ((rows - self._mean) / self._scale).astype(np.float32)
        hidden = np.maximum(np.einsum("pe,neh->nph", standard, self._first) + self._first_bias[:, None], 0)
        logits = np.einsum("nph,nh->np", hidden, self._second) + self._second_bias[:, None]
        return (1 / (1 + np.exp(-logits))).mean(0)


@lru_cache(maxsize=1)
def fitted_rule() -> Rule:
    """The rule that ships."""
    tensors = load_file(str(files("corrigenda.editing") / "data" / SHIPPED))
    return Rule({name: tensor for name, tensor in tensors.items() if name.startswith("rule.")})


@lru_cache(maxsize=1)
def rule_identity() -> str:
    """By which this version's rule is known again in a store: `VERSION`, and the start of its data's SHA-256."""
    data = files("corrigenda.editing") / "data"
    digest = hashlib.sha256(b"".join((data / name).read_bytes() for name in (SHIPPED, DECOYS)))
    return f"{VERSION}-{digest.hexdigest()[:16]}"
