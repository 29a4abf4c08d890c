"""Routes by what is asked, and not only by whom: sentences apart, candidates by rare tokens, then a fitted rule."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...edits.edit import Edit
from ...edits.tokenizer import Tokenizer
from ...errors import CorrigendaError
from ..router import Decision, EditRouter, decide
from ..tokens import TokenRouter
from .candidates import CandidateIndex
from .decoys import Decoys, Profile
from .encoder import PACKAGED_ENCODER, Encoder, load_encoder
from .ground import ground_of, read_ground
from .known import Known, as_int8, as_unit, packed, token_row, unpacked
from .pairs import SHARE, Pair, limited, pairs_of
from .reasons import DENIED, NOTHING, PROTECTED, WHETHER, against_of, in_words
from .rule import Asked, Held, evidence, fitted_rule
from .sentences import parts_of
from .subject import FUNCTION_WORDS, guessed, locate, normalised, words
from .unread import is_unread, likeness
from .wording import asks_whether, core, is_denied, is_negated

_COVERED = 0.6
"""What share of a prompt's words, by weight, its question must hold to stand for it: "Who is he?" cannot."""

_LONGEST_QUESTION = 80
"""Words of a question in several sentences; what is longer is a passage."""


class Match(NamedTuple):
    """How a request meets an edit: how surely it asks what the edit answers, 0 to 1, and what speaks against it.

    against: one of the numbers in `reasons.py`
    """

    score: float
    against: int = NOTHING


class _Texts(NamedTuple):
    """What an edit is compared by: its question, and protected ones `about` its subject, and `others`."""

    subject: str
    masked: str
    whole: str
    about: list[str]
    others: list[str]

    @property
    def encoded(self) -> list[str]:
        return [self.masked, self.whole, *self.about, *self.others]


class MeaningRouter(EditRouter):
    """Which edit a request asks for, or none.

    Each sentence or line that asks something is compared with the edits that share its rare tokens or name their
    subject. Of such a pair the subject is put aside, and what is left is compared by a sentence encoder: with the
    edit's own question, and with decoys, other questions that one could ask of a subject. A rule that is fitted to all
    this says how surely the one asks for the other; from `threshold` on (.5 as "auto") the surest edit is routed.

    What is denied ("who does not lead X"), compared ("is X larger than Y") or asked for as yes or no gets no edit, nor
    does a statement that is not the last part of a request. An edit never answers its own protected questions.
    """

    needs_features = False

    def __init__(
        self,
        tokenizer: Tokenizer,
        background: Sequence[str],
        *,
        encoder: str = PACKAGED_ENCODER,
        decoys: Sequence[str] = (),
        threshold: float | str = "auto",
    ) -> None:
        super().__init__(threshold, 0.5, 0.5, 0.0, "cpu")
        self.encoder: Encoder = load_encoder(encoder)
        self.decoys = _decoys(encoder, tuple(decoys))
        self.own_decoys = tuple(decoys)
        self.tokens = TokenRouter(tokenizer, background)
        self._known: list[Known] = []
        self._gone: list[Known] = []
        self._index: CandidateIndex | None = None
        self._gone_index: CandidateIndex | None = None

    # Edits

    def fingerprints_of(self, prompts: Sequence[str], edits: Sequence[Edit] | None = None) -> list[Tensor]:
        if edits is None:
            edits = [Edit(prompt, "?") for prompt in prompts]
        return [packed(known) for known in self._known_by(edits)]

    def _known_by(self, edits: Sequence[Edit]) -> list[Known]:
        found = [self._texts(edit) for edit in edits]
        texts = list(dict.fromkeys(text for one in found if one.masked for text in one.encoded))
        vectors = dict(zip(texts, as_int8(self.encoder.encode(texts).numpy()))) if texts else {}
        none: np.ndarray = np.zeros((0, self.encoder.width), dtype=np.int8)
        return [
            Known(
                self.tokens.known_by(edit.prompt),
                one.subject,
                one.masked,
                one.whole,
                len(one.about),
                np.stack([vectors[text] for text in one.encoded]) if one.masked else none,
            )
            for edit, one in zip(edits, found)
        ]

    def _texts(self, edit: Edit) -> _Texts:
        parts = parts_of(edit.prompt)
        asking = [part for part in parts if part.asks or part.open or len(parts) == 1]
        question = asking[-1].text if asking else ""
        if not question:
            return _Texts("", "", normalised(edit.prompt), [], [])
        if self._said(question) < _COVERED * self._said(edit.prompt):
            # "A holiday in Greece celebrates ... Which year was that?" asks with all its sentences; a passage does not.
            if not asking[-1].asks or len(edit.prompt.split()) > _LONGEST_QUESTION:
                return _Texts("", "", normalised(edit.prompt), [], [])
            question = " ".join(edit.prompt.split())
        text = normalised(question)
        subject = normalised(edit.subject) if edit.subject else guessed(question, self._weight)
        found = locate(subject, text, self._weight)
        if found.share < SHARE:
            subject = guessed(question, self._weight)
            found = locate(subject, text, self._weight)
        # What is asked of the same subject is compared without it, another protected question as it stands. A locality
        # about another subject needs nothing: no request about that one comes near this edit.
        about, others = [], []
        for text in dict.fromkeys([*edit.protected, *(locality.prompt for locality in edit.localities)]):
            place = locate(subject, normalised(text), self._weight)
            if place.share >= SHARE:
                about.append(core(place.masked))
            elif text in edit.protected:
                others.append(core(normalised(text)))
        return _Texts(subject, core(found.masked), core(normalised(question)), about, others)

    def _said(self, text: str) -> float:
        return sum(map(self._weight, words(normalised(text))))

    def _weight(self, word: str) -> float:
        return 0.1 if word in FUNCTION_WORDS else float(self.encoder.pieces(word))

    def _unpacked(self, fingerprint: Tensor) -> Known:
        return unpacked(fingerprint, self.tokens.vocabulary, self.encoder.width)

    def fits(self, fingerprint: Tensor) -> bool:
        try:
            self._unpacked(fingerprint)
        except CorrigendaError:
            return False
        return True

    def fact_of(self, fingerprint: Tensor) -> tuple[int, ...]:
        return tuple(token_row(fingerprint))

    def rows_of(self, fingerprints: Sequence[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(
            [f.int().cpu() for f in fingerprints], batch_first=True, padding_value=-1
        )

    def add_fingerprints(self, fingerprints: Sequence[Tensor]) -> None:
        known = [self._unpacked(fingerprint) for fingerprint in fingerprints]
        self._known = [*self._known, *known]  # a new list: views keep the old one
        self.tokens.add_rows([one.tokens for one in known])
        self._changed()

    def _changed(self) -> None:
        self.size = len(self._known)
        self._index = self._gone_index = None

    def remove(self, edits: set[int]) -> None:
        self.tokens.remove(edits)
        self._known = [one for place, one in enumerate(self._known) if place not in edits]
        self.withdrawn = None
        self._gone = []
        self._changed()

    def reserve(self, edits: int, tokens: int) -> None:
        self.tokens.reserve(edits, tokens)

    def withdraw(
        self, ids: Sequence[str], fingerprints: Sequence[Tensor], undone: Sequence[int], written: Sequence[int]
    ) -> None:
        super().withdraw(ids, fingerprints, undone, written)
        self._gone = [self._unpacked(fingerprint) for fingerprint in fingerprints]
        self._gone_index = None

    def add_decoys(self, decoys: Sequence[str]) -> None:
        """Compare with these questions too, each with "it" for the subject: they are none of the edits'."""
        self.own_decoys = tuple(dict.fromkeys([*self.own_decoys, *decoys]))
        self.decoys = _decoys(self.encoder.name, self.own_decoys)

    # Requests

    def queries(self, requests: Sequence[str]) -> list[str]:
        return list(requests)

    @property
    def threshold(self) -> float:
        return self.floor if self.threshold_setting == "auto" else float(self.threshold_setting)

    def nearest(self, queries: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        return self._nearest(queries)[:3]

    def _nearest(self, queries: Sequence[str]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same, and what speaks against the best."""
        self._prepare()
        found = []
        for matches in self._matches(queries, self._known, self._index):
            best = sorted(((match.score, -place) for place, match in matches.items()), reverse=True)[:2]
            against = matches[-best[0][1]].against if best else NOTHING
            best += [(0.0, 1)] * (2 - len(best))
            found.append((-best[0][1], best[0][0], best[1][0], against))
        return (
            torch.tensor([row[0] for row in found], dtype=torch.int32, device="cpu"),
            torch.tensor([row[1] for row in found], dtype=torch.float32, device="cpu"),
            torch.tensor([row[2] for row in found], dtype=torch.float32, device="cpu"),
            torch.tensor([row[3] for row in found], dtype=torch.int32, device="cpu"),
        )

    def decide_queries(self, queries: Sequence[str]) -> Decision:
        place, score, runner_up, against = self._nearest(queries)
        decision = decide(place, score, runner_up, self.threshold, self.rival_weight)._replace(against=against)
        if self.withdrawn is None:
            return decision
        return self.withdrawn.hold_back(decision, *self.nearest_withdrawn(queries))

    def in_words(self, against: int) -> str | None:
        return in_words(against, self.decoys.names)

    def nearest_stored(self, fingerprints: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """By tokens: of edits of one subject many ask nearly the same, and only the same words are the same fact."""
        return self.tokens.nearest([list(self.fact_of(fingerprint)) for fingerprint in fingerprints])

    def nearest_withdrawn(self, queries: Sequence[str]) -> tuple[Tensor, Tensor]:
        self._prepare()
        if self._gone_index is None:
            self._gone_index = self._index_of(self._gone)
        found = []
        for matches in self._matches(queries, self._gone, self._gone_index):
            found.append(max(((match.score, -place) for place, match in matches.items()), default=(0.0, 0)))
        return (
            torch.tensor([-place for _, place in found], dtype=torch.int32, device="cpu"),
            torch.tensor([score for score, _ in found], dtype=torch.float32, device="cpu"),
        )

    def scores(self, queries: Sequence[str]) -> Tensor:
        self._prepare()
        scores = torch.zeros(self.size, dtype=torch.float32, device="cpu")
        (matches,) = self._matches(queries, self._known, self._index)
        for place, match in matches.items():
            scores[place] = match.score
        return scores

    def _prepare(self) -> None:
        self.tokens._prepare()
        if self._index is None:
            self._index = self._index_of(self._known)

    def _index_of(self, known: Sequence[Known]) -> CandidateIndex:
        return CandidateIndex(
            [one.tokens for one in known],
            [one.subject for one in known],
            [one.is_long for one in known],
            self.tokens.rarity.numpy().astype(np.int64),
            self._weight,
        )

    def _matches(
        self, requests: Sequence[str], known: Sequence[Known], index: CandidateIndex
    ) -> list[dict[int, Match]]:
        """By request, the edits that it could be about, by place."""
        found, pairs, rows, vectors = self._compared(requests, known, index)
        if not pairs:
            return found
        for (number, place, pair), row, score in zip(pairs, rows, fitted_rule()(rows).tolist()):
            if _closer_to_protected(pair.known, vectors[pair.masked], vectors.get(pair.whole)):
                match = Match(0.0, PROTECTED)
            elif asks_whether(pair.masked) and not asks_whether(pair.known.masked):
                match = Match(0.0, WHETHER)
            elif is_denied(pair.masked) and not is_negated(pair.known.masked):
                match = Match(0.0, DENIED)
            elif is_unread(pair.masked) or is_unread(pair.known.masked):
                # Without a subject that stands there whole only the edit's own words are known to ask for it.
                match = Match(likeness(pair.masked, pair.known.masked) if pair.share == 1 else 0.0)
            else:
                against = NOTHING
                if score < self.threshold:
                    profile = Profile(self.decoys, vectors[pair.masked])
                    against = against_of(row, profile, self._held(pair.known))
                match = Match(score, against)
            _keep(found[number], place, match)
        return found

    def _compared(
        self, requests: Sequence[str], known: Sequence[Known], index: CandidateIndex
    ) -> tuple[list[dict[int, Match]], list[tuple[int, int, Pair]], np.ndarray, dict[str, np.ndarray]]:
        """What needs no rule, by request and place; and the pairs that do (with both), their evidence and vectors."""
        found: list[dict[int, Match]] = [{} for _ in requests]
        pairs: list[tuple[int, int, Pair]] = []
        for number, request in enumerate(requests):
            for place, pair in pairs_of(request, known, index, self.tokens, self._weight):
                if not pair.whole:
                    _keep(found[number], place, Match(pair.tokens))
                elif pair.whole == pair.known.whole:
                    _keep(found[number], place, Match(1.0))
                else:
                    pairs.append((number, place, pair))
        texts = list(
            dict.fromkeys(
                text
                for _, _, pair in pairs
                for text in ([pair.masked, pair.whole] if pair.needs_whole else [pair.masked])
            )
        )
        vectors = dict(zip(texts, self.encoder.encode(texts).numpy()))
        pairs = limited(pairs, vectors)
        profiles = {pair.masked: Profile(self.decoys, vectors[pair.masked]) for _, _, pair in pairs}
        rows = [
            evidence(
                Asked(
                    pair.part, pair.masked, profiles[pair.masked], vectors.get(pair.whole) if pair.share < 1 else None
                ),
                self._held(pair.known),
                pair.tokens,
                pair.share,
                self._weight,
            )
            for _, _, pair in pairs
        ]
        return found, pairs, np.array(rows), vectors

    def _held(self, known: Known) -> Held:
        return _held(self.decoys, known.masked, known.vectors[:2].tobytes())

    # What is saved

    def view(self) -> MeaningRouter:
        view = super().view()
        view.tokens = self.tokens.view()
        return view

    def ground(self) -> dict[str, Tensor]:
        return {**self.tokens.ground(), **ground_of(self.encoder, self.decoys.digest, self.own_decoys)}

    def load_ground(self, tensors: dict[str, Tensor]) -> None:
        own = read_ground(tensors, self.encoder)
        self.tokens.load_ground(tensors)
        if own != self.own_decoys:
            self.own_decoys, self.decoys = own, _decoys(self.encoder.name, own)
        self._known, self._gone = [], []
        self.withdrawn = None
        self._changed()

    def state(self) -> dict[str, Tensor]:
        none = torch.zeros(0, 0, dtype=torch.int32, device="cpu")
        rows = self.rows_of([packed(known) for known in self._known]) if self._known else none
        return {"router.known": rows, **self.ground()}


def _keep(matches: dict[int, Match], place: int, match: Match) -> None:
    if place not in matches or match.score > matches[place].score:
        matches[place] = match


def _closer_to_protected(known: Known, masked: np.ndarray, whole: np.ndarray | None) -> bool:
    """Whether a part is no nearer to an edit than to one of its protected questions."""
    if len(known.vectors) <= 2:
        return False
    vectors = as_unit(known.vectors)
    about, others = vectors[2 : 2 + known.about], vectors[2 + known.about :]
    if (about @ masked >= vectors[0] @ masked).any():
        return True
    return whole is not None and bool((others @ whole >= vectors[1] @ whole).any())


@lru_cache(maxsize=4096)
def _held(decoys: Decoys, masked: str, vectors: bytes) -> Held:
    """What comparing with an edit takes, from its two vectors."""
    own, whole = as_unit(np.frombuffer(vectors, dtype=np.int8).reshape(2, -1))
    profile = Profile(decoys, own)
    return Held(masked, profile, whole, profile.own(), profile.projected_own())


@lru_cache(maxsize=4)
def _decoys(encoder: str, own: tuple[str, ...]) -> Decoys:
    return Decoys(load_encoder(encoder), own)
