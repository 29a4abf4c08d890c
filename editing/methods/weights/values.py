"""v*: what a layer is to give at an edit's subject for the model to say its target. Many edits share every pass.

ROME (arXiv 2202.05262, equation 4), MEMIT (2210.07229) and all that build on them find it by Adam, one edit after the
other, each step a pass of the whole model over 21 rows. Here the layers below are passed once (`frozen_features`), what
stands before the subject too, the head sees answer tokens alone, and the rows of all edits of a batch pass the layers
above side by side, each edit with an Adam state and an end of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...backbone.decoder import Decoder
from ...backbone.frozen import Features, Row, length_groups, pass_tokens
from ...backbone.suffix import Suffix, suffix_of
from .config import ValueConfig

_STEP_TOKENS = 320
"""Padded tokens in one pass on a CPU: more only enlarges the activations that are kept for the gradient."""


class ValueProblem(NamedTuple):
    """One edit as its value is found: its rows after each context, and where each names the subject.

    subject         the tokens of "{subject} is a" up to the lookup
    subject_hidden  `[tokens, d]`, what the layer made of them
    norm            of what stands at the lookup in the prompt alone: the clamp and the decay are relative to it
    """

    rows: Sequence[Row]
    lookups: Sequence[int]
    features: Sequence[Features]
    subject: tuple[int, ...]
    subject_hidden: Tensor
    norm: Tensor


class OptimisedValues(NamedTuple):
    """The changes `[edits, d]` of what the layer gives at the lookup, fp32; each edit's last loss and its steps."""

    delta: Tensor
    loss: list[float]
    steps: list[int]


class _Rows(NamedTuple):
    """Rows that pass together: `owner` the edit of each, `scale` what its loss counts in that edit's."""

    suffix: Suffix
    owner: Tensor
    scale: Tensor

    def added(self, delta: Tensor) -> Tensor:
        """What is added at the touched tokens: at each row's lookup, the first of them, its edit's change."""
        counts = self.suffix.valid.sum(1)
        tokens = delta.new_zeros(len(self.suffix.touched), delta.shape[1])
        return tokens.index_add(0, counts.cumsum(0) - counts, delta[self.owner])

    def select(self, running: Tensor) -> _Rows | None:
        """Those of the edits that go on."""
        kept = running[self.owner].nonzero()[:, 0]
        if len(kept) == len(self.owner):
            return self
        return _Rows(self.suffix.select(kept), self.owner[kept], self.scale[kept]) if len(kept) else None


def optimised_values(
    decoder: Decoder, layer: int, asked: Sequence[ValueProblem], config: ValueConfig
) -> OptimisedValues:
    """The change of `layer`'s output at the lookup that makes each edit's target likely in all its contexts.

    Loss of an edit: mean over its rows of the mean cross-entropy of the target's tokens, + kl_weight * KL(now | before)
    of what follows its subject, + value_decay * |delta| / norm^2. A step of Adam, then |delta| <= clamp * norm.
    """
    device = decoder.device(layer)
    norms = torch.stack([one.norm.float() for one in asked]).to(device)
    delta = torch.zeros(
        len(asked), asked[0].subject_hidden.shape[1], dtype=torch.float32, device=device, requires_grad=True
    )
    groups = _rows_of(decoder, layer, asked)
    with torch.no_grad():
        essences = [(group, _next(group, delta)) for group in _essences(decoder, layer, asked, config.kl_weight)]
    running = torch.ones(len(asked), dtype=torch.bool, device=device)
    adam = _Adam(delta, config.learning_rate)
    loss, steps = [float("inf")] * len(asked), [0] * len(asked)
    for step in range(config.steps):
        delta.grad = None
        total = torch.zeros(len(asked), dtype=torch.float32, device=device)
        with torch.set_grad_enabled(step < config.steps - 1):  # the last step only looks
            for group in groups:
                of_row = group.suffix.losses(group.added(delta)).sum(1) * group.scale
                _take(of_row, group.owner, total)
            for group, before in essences:
                _take(_drift(_next(group, delta), before) * group.scale, group.owner, total)
            decay = config.value_decay * delta.norm(dim=1) / norms**2
            _take(torch.where(running, decay, 0.0), torch.arange(len(asked), dtype=torch.int64, device=device), total)
        stops = running & (total < config.stop_loss)
        for edit in running.nonzero()[:, 0].tolist():
            loss[edit] = float(total[edit])
        running = running & ~stops
        if step == config.steps - 1 or not bool(running.any()):
            break
        adam.step(delta.grad, running)
        with torch.no_grad():
            norm, most = delta.norm(dim=1), config.clamp * norms
            delta.mul_(torch.where(norm > most, most / norm, 1.0)[:, None])
        for edit in running.nonzero()[:, 0].tolist():
            steps[edit] += 1
        if bool(stops.any()):
            groups = [kept for group in groups if (kept := group.select(running)) is not None]
            essences = [
                (kept, before[running[group.owner]])
                for group, before in essences
                if (kept := group.select(running)) is not None
            ]
    return OptimisedValues(delta.detach(), loss, steps)


class _Adam:
    """Adam as torch has it (betas .9 and .999), for rows that end at different steps: one that ended stays."""

    def __init__(self, parameter: Tensor, rate: float) -> None:
        self.parameter, self.rate, self.steps = parameter, rate, 0
        self.first, self.second = torch.zeros_like(parameter), torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, gradient: Tensor, running: Tensor) -> None:
        self.steps += 1
        self.first.lerp_(gradient, 0.1)
        self.second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        first, second = self.first / (1 - 0.9**self.steps), self.second / (1 - 0.999**self.steps)
        change = self.rate * first / (second.sqrt() + 1e-8)
        self.parameter.sub_(torch.where(running[:, None], change, 0.0))


def _take(of_row: Tensor, owner: Tensor, total: Tensor) -> None:
    """Add rows' losses to their edits', and their gradients to what has some; what was kept for these is let go."""
    if of_row.requires_grad:
        of_row.sum().backward()
    total.index_add_(0, owner, of_row.detach().to(total))


def _rows_of(decoder: Decoder, layer: int, asked: Sequence[ValueProblem]) -> list[_Rows]:
    rows = [(edit, i) for edit, one in enumerate(asked) for i in range(len(one.rows))]
    lengths = [len(asked[edit].rows[i].tokens) - asked[edit].lookups[i] for edit, i in rows]
    device, groups = decoder.device(layer), []
    for group in length_groups(lengths, pass_tokens(device, _STEP_TOKENS)):
        parts = [(asked[edit], i) for edit, i in (rows[place] for place in group)]
        suffix = suffix_of(
            decoder,
            layer,
            [one.features[i].hidden for one, i in parts],
            [one.rows[i] for one, i in parts],
            [one.lookups[i] for one, i in parts],
        )
        owner = torch.tensor([rows[place][0] for place in group], dtype=torch.int64, device=device)
        scale = [1 / (len(one.rows[i].labels) * len(one.rows)) for one, i in parts]
        groups.append(_Rows(suffix, owner, torch.tensor(scale, dtype=torch.float32, device=device)))
    return groups


def _essences(decoder: Decoder, layer: int, asked: Sequence[ValueProblem], weight: float) -> list[_Rows]:
    """The rows by whose drift an edit is held back: "{subject} is a", up to the lookup, of which a token is asked."""
    device, groups = decoder.device(layer), []
    if not weight:
        return []
    for group in length_groups([len(one.subject) for one in asked], pass_tokens(device, _STEP_TOKENS)):
        parts = [asked[edit] for edit in group]
        rows = [Row(one.subject, (0,)) for one in parts]  # a label marks the place; which one is not asked
        suffix = suffix_of(
            decoder, layer, [one.subject_hidden for one in parts], rows, [len(one.subject) - 1 for one in parts]
        )
        owner = torch.tensor(group, dtype=torch.int64, device=device)
        groups.append(_Rows(suffix, owner, torch.full((len(group),), weight, dtype=torch.float32, device=device)))
    return groups


def _next(group: _Rows, delta: Tensor) -> Tensor:
    """Log probabilities `[rows, vocabulary]` of what follows the subject."""
    return F.log_softmax(group.suffix.logits(group.suffix.last_hidden(group.added(delta))), -1)


def _drift(now: Tensor, before: Tensor) -> Tensor:
    """KL(now || before) `[rows]`, in the published order."""
    return (now.exp() * (now - before)).sum(-1)
