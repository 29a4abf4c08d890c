"""Scores: teacher-forced Rel, Gen and Loc as in WISE and MEMOIR, and free generation, which is what a user sees."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..backbone.frozen import length_groups, padded_ids
from ..backbone.modes import own_modes
from ..edits.edit import Edit
from ..routers.router import part_of

if TYPE_CHECKING:
    from ..model.edited_model import EditedModel

_TOKENS = 2048
"""Padded tokens in one teacher-forced pass."""


@dataclass(frozen=True)
class Scores:
    """Means over edits, 0 to 1; None where no record has what the score needs.

    rel, gen    share of target tokens that are the argmax after the prompt, after a rephrasing, each target token
                given the true ones before it
    loc         share of the locality answer's tokens at which the edited model's argmax is the unedited model's
    free_rel    greedy generation to its natural stop equals the target, after normalisation: the prompt
    free_gen    the same for rephrasings
    routed, routed_gen   share of prompts, of rephrasings that get the right edit, or the memory that holds it
    misfires    share of locality prompts that any edit is applied to: the lower, the better
    """

    n: int
    rel: float | None
    gen: float | None
    loc: float | None
    free_rel: float | None
    free_gen: float | None
    routed: float | None = None
    routed_gen: float | None = None
    misfires: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Prompt:
    """One thing asked of the model: a tokenised prompt, what should follow, and whose edit it is about."""

    edit: int
    prompt: list[int]
    answer: list[int]


@dataclass
class Evaluator:
    """Scores an edited model on edits, in batches.

    free: whether to generate. spare_tokens: how far generation may run past the target's length before it counts as
    not having stopped. After `score`, `by_edit` has each edit's own scores, and `provenance` says of every prompt that
    was asked which edit was applied to it. The unedited model's answers to locality prompts are kept, so that one
    evaluator can score the same edits at several points of a stream.
    """

    edited: EditedModel
    free: bool = True
    spare_tokens: int = 4
    batch_size: int = 32
    immediate: list[Scores] = field(default_factory=list)
    by_edit: list[dict[str, float]] = field(default_factory=list)
    provenance: list[dict[str, Any]] = field(default_factory=list)
    _unedited: dict[tuple[tuple[int, ...], ...], list[list[int]]] = field(default_factory=dict)

    def score_batch(self, edits: Sequence[Edit]) -> None:
        """Score edits right after they were written; `immediate_scores` averages these."""
        self.immediate.append(self.score(edits))

    def immediate_scores(self) -> Scores | None:
        """Every edit scored right after its batch was written, averaged over the stream."""
        if not self.immediate:
            return None
        total = sum(scores.n for scores in self.immediate)
        names = [name for name in Scores.__dataclass_fields__ if name != "n"]

        def mean(name: str) -> float | None:
            known = [(getattr(s, name), s.n) for s in self.immediate if getattr(s, name) is not None]
            return sum(value * n for value, n in known) / sum(n for _, n in known) if known else None

        return Scores(n=total, **{name: mean(name) for name in names})

    def score(self, edits: Iterable[Edit]) -> Scores:
        """All scores of `edits` as the model is now."""
        with own_modes(self.edited.model):
            return self._score(list(edits))

    def _score(self, edits: list[Edit]) -> Scores:
        encode = self.edited.prompts.encode_with_target
        asked = [_Prompt(i, *encode(edit.prompt, edit.target)) for i, edit in enumerate(edits)]
        rephrased = [_Prompt(i, *encode(text, edit.target)) for i, edit in enumerate(edits) for text in edit.rephrases]
        local = [self._locality(i, edit, n) for i, edit in enumerate(edits) for n in range(len(edit.localities))]
        self.provenance = []
        rel, rel_routes = self._teacher_forced("prompt", asked)
        gen, gen_routes = self._teacher_forced("rephrase", rephrased)
        loc, loc_routes = self._locality_agreement(local)
        slot = {edit.id: place for place, edit in enumerate(self.edited.edits)}
        same = {(edit.prompt, edit.target): place for place, edit in enumerate(self.edited.edits)}
        own = [slot.get(edit.id, same.get((edit.prompt, edit.target), -2)) for edit in edits]
        holds = self.edited.method.holds
        values = {
            "rel": _by_edit(asked, rel),
            "gen": _by_edit(rephrased, gen),
            "loc": _by_edit(local, loc),
            "free_rel": self._free(asked, edits),
            "free_gen": self._free(rephrased, edits),
            "routed": _by_edit(asked, [float(holds(r, own[a.edit])) for a, r in zip(asked, rel_routes)]),
            "routed_gen": _by_edit(rephrased, [float(holds(r, own[a.edit])) for a, r in zip(rephrased, gen_routes)]),
            "misfires": _by_edit(local, [float(r >= 0) for r in loc_routes]),
        }
        self.by_edit = [{name: found[i] for name, found in values.items() if i in found} for i in range(len(edits))]
        return Scores(n=len(edits), **{name: _mean(found) for name, found in values.items()})

    def _locality(self, number: int, edit: Edit, which: int) -> _Prompt:
        """A locality prompt with its answer; one token is asked for where no answer is known."""
        locality = edit.localities[which]
        prompts = self.edited.prompts
        if locality.answer is None:
            return _Prompt(number, prompts.encode(prompts.wrap(locality.prompt)), [0])
        if edit.metadata.get("locality_kind") == "web-text":  # a text cut in two: it goes on without a space
            prompt = prompts.encode(locality.prompt)
            whole = prompts.encode(locality.prompt + locality.answer)
            return _Prompt(number, prompt, whole[len(prompt) :] or [0])
        return _Prompt(number, *prompts.encode_with_target(locality.prompt, locality.answer))

    def _teacher_forced(self, kind: str, asked: Sequence[_Prompt]) -> tuple[list[float], list[int]]:
        predictions, routes = self._predict(asked, edited=True, kind=kind)
        return [_agreement(p, a.answer) for p, a in zip(predictions, asked)], routes

    def _locality_agreement(self, asked: Sequence[_Prompt]) -> tuple[list[float], list[int]]:
        # Kept for these prompts together: in bf16 a prompt's argmax depends on what else is in its pass, 1 % of them.
        key = tuple((*a.prompt, -1, *a.answer) for a in asked)
        if key not in self._unedited:
            self._unedited[key] = self._predict(asked, edited=False)[0]
        predictions, routes = self._predict(asked, edited=True, kind="locality")
        return [_agreement(p, base) for p, base in zip(predictions, self._unedited[key])], routes

    def _predict(self, asked: Sequence[_Prompt], edited: bool, kind: str = "") -> tuple[list[list[int]], list[int]]:
        """Argmax at each answer position, given the answer's earlier tokens; and the edit applied, or -1."""
        model = self.edited
        predictions: list[list[int]] = [[] for _ in asked]
        routes = [-1] * len(asked)
        read, known = model.read_as([a.prompt for a in asked]) if edited else ([a.prompt for a in asked], None)
        rows = [prompt + a.answer[:-1] for prompt, a in zip(read, asked)]
        model.decoder.check_lengths(rows, [1] * len(rows))
        for group in length_groups([len(row) for row in rows], _TOKENS):
            ids = padded_ids([rows[i] for i in group], model.model.get_input_embeddings().weight.device)
            prompts = [len(read[i]) for i in group]
            lengths = [len(rows[i]) for i in group]
            with model.teacher_forcing(ids, prompts, lengths, edited, part_of(known, group)) as route_of:
                mask = (
                    torch.arange(ids.shape[1], dtype=torch.int64, device=ids.device)
                    < torch.tensor(lengths, dtype=torch.int64, device=ids.device)[:, None]
                )
                hidden = model.decoder.body(input_ids=ids, attention_mask=mask.long(), use_cache=False)[0]
                found = route_of()
                sources = model.sources(len(group)) if edited else []
            for i, source in zip(group, sources):
                self.provenance.append({"about": asked[i].edit, "kind": kind, **source.to_dict()})
            answered = _answer_positions(prompts, lengths, hidden)
            # `body` ends with the final norm, so its output goes to the head as it is.
            best = model.decoder.head(hidden[answered]).argmax(-1).split([n - p + 1 for p, n in zip(prompts, lengths)])
            for place, i in enumerate(group):
                predictions[i] = best[place].tolist()
                routes[i] = found[place]
        return predictions, routes

    def _free(self, asked: Sequence[_Prompt], edits: Sequence[Edit]) -> dict[int, float]:
        if not self.free or not asked:
            return {}
        limits = [len(a.answer) + self.spare_tokens for a in asked]
        answers = self.edited.answer_ids([a.prompt for a in asked], limits, self.batch_size)
        hits = [float(normalised(answer.text) == normalised(edits[a.edit].target)) for a, answer in zip(asked, answers)]
        return _by_edit(asked, hits)


def normalised(text: str) -> str:
    """For exact match, as in SQuAD: lower case, no punctuation, no articles, single spaces.

    Of a text that is nothing else, as "The" or "?", they stay: no answer at all would equal it.
    """
    plain = "".join(char for char in text.lower() if char not in string.punctuation)
    words = re.sub(r"\b(a|an|the)\b", " ", plain).split()
    return " ".join(words or plain.split() or text.split())


def _answer_positions(prompts: Sequence[int], lengths: Sequence[int], hidden: Tensor) -> Tensor:
    columns = torch.arange(hidden.shape[1], dtype=torch.int64, device=hidden.device)
    first = torch.tensor(prompts, dtype=torch.int64, device=hidden.device)[:, None] - 1
    end = torch.tensor(lengths, dtype=torch.int64, device=hidden.device)[:, None]
    return (columns >= first) & (columns < end)


def _agreement(found: Sequence[int], wanted: Sequence[int]) -> float:
    return sum(f == w for f, w in zip(found, wanted)) / len(wanted)


def _by_edit(asked: Sequence[_Prompt], values: Sequence[float]) -> dict[int, float]:
    """For each edit that was asked about, the mean over what was asked about it."""
    by_edit: dict[int, list[float]] = {}
    for a, value in zip(asked, values):
        by_edit.setdefault(a.edit, []).append(value)
    return {edit: sum(found) / len(found) for edit, found in by_edit.items()}


def _mean(values: dict[int, float]) -> float | None:
    return sum(values.values()) / len(values) if values else None
