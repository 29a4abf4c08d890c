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
from .another import asks_another
from .candidates import CandidateIndex
from .decoys import Decoys, Profile
from .encoder import PACKAGED_ENCODER, Encoder, load_encoder
from .ground import ground_of, read_ground
from .known import Known, as_int8, as_unit, packed, token_row, unpacked
from .matches import Match, match_of
from .pairs import Pair, limited, pairs_of
from .reasons import NOTHING, against_of, in_words
from .rule import EditSide, RequestSide, evidence, fitted_rule, rule_identity
from .subject import FUNCTION_WORDS, content_words, words
from .texts import texts_of_edit


class Compared(NamedTuple):
    """Requests beside the edits that they could be about.

    found    by request, the matches that need no rule, by the edit's place
    pairs    request, place, and the pair that the rule is to judge; rows: float `[pairs, evidence]`
    vectors, profiles
             of the pairs' texts
    """

    found: list[dict[int, Match]]
    pairs: list[tuple[int, int, Pair]]
    rows: np.ndarray
    vectors: dict[str, np.ndarray]
    profiles: dict[str, Profile]


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

    @property
    def rule(self) -> str:
        return rule_identity()

    # Edits

    def fingerprints_of(self, prompts: Sequence[str], edits: Sequence[Edit] | None = None) -> list[Tensor]:
        if edits is None:
            edits = [Edit(prompt, "?") for prompt in prompts]
        return [packed(known) for known in self._known_by(edits)]

    def _known_by(self, edits: Sequence[Edit]) -> list[Known]:
        found = [texts_of_edit(edit, self._weight) for edit in edits]
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
        compared = self.compared(requests, known, index)
        return self.judged(compared, fitted_rule()(compared.rows).tolist() if compared.pairs else [])

    def judged(self, compared: Compared, scores: Sequence[float]) -> list[dict[int, Match]]:
        """The same, from the scores that a rule gives to what is compared."""
        found = [dict(matches) for matches in compared.found]
        for (number, place, pair), row, score in zip(compared.pairs, compared.rows, scores):
            match = match_of(pair, score, compared.vectors)
            if match.against is None:
                asked, held = compared.profiles[pair.masked], self._held(pair.known)
                if match.score >= self.threshold and asks_another(pair, asked, held, self.decoys, self.encoder):
                    match = match._replace(score=0.0)
                against = against_of(row, asked, held) if match.score < self.threshold else NOTHING
                match = match._replace(against=against)
            _keep(found[number], place, match)
        return found

    def compared(self, requests: Sequence[str], known: Sequence[Known], index: CandidateIndex) -> Compared:
        """What a rule is to judge of these requests, and what needs none."""
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
        said = {masked: _said(self.decoys, masked, profile) for masked, profile in profiles.items()}
        rows = [
            evidence(
                RequestSide(
                    pair.part,
                    pair.masked,
                    profiles[pair.masked],
                    vectors.get(pair.whole) if pair.share < 1 else None,
                    said[pair.masked],
                ),
                self._held(pair.known),
                pair.tokens,
                pair.share,
                self.encoder,
            )
            for _, _, pair in pairs
        ]
        return Compared(found, pairs, np.array(rows), vectors, profiles)

    def _held(self, known: Known) -> EditSide:
        return _held(self.decoys, known.subject, known.masked, known.whole, known.vectors[:2].tobytes())

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


@lru_cache(maxsize=4096)
def _held(decoys: Decoys, subject: str, masked: str, whole_text: str, vectors: bytes) -> EditSide:
    """What comparing with an edit takes, from its two vectors."""
    own, whole = as_unit(np.frombuffer(vectors, dtype=np.int8).reshape(2, -1))
    profile = Profile(decoys, own)
    there = frozenset((*words(whole_text), *words(subject)))
    said = _said(decoys, masked, profile)
    return EditSide(there, masked, profile, whole, said, profile.own(decoys), profile.projected_own(decoys))


def _said(decoys: Decoys, masked: str, profile: Profile) -> tuple[str, ...]:
    """The words of a question, and of the relation that it is nearest to, those that say something."""
    return tuple(sorted(decoys.words_of(profile.kin).union(content_words(masked))))


@lru_cache(maxsize=4)
def _decoys(encoder: str, own: tuple[str, ...]) -> Decoys:
    return Decoys(load_encoder(encoder), own)
