"""Where an edit's values start: along what the model's head reads its answer by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...backbone.decoder import Decoder
from ...backbone.parts import entries, is_split

_RIDGE = 0.1
"""Of the covariance's mean variance: steps an edit are 1.3 with .01, .1 and 1, and 1.9 without a covariance."""

_ROWS = 8
"""Head rows that the covariance is taken of, times the width: all of SmolLM2's 49,152 rows give the same steps."""

_AT_A_TIME = 4096


class HeadStart:
    """Unit directions `[labels, d]` in which a hidden state says each label more than all others.

    w, a head's row times the final norm's gain, is what a label's logit is read by. The head's rows have much in
    common, and a step along w itself raises thousands of logits: the direction is C^-1 (w - mean w), for C the
    covariance of all w, as in a linear discriminant. The layers above the edited one are passed over.
    """

    @torch.no_grad()
    def __init__(self, decoder: Decoder) -> None:
        self._weight = decoder.head.weight
        self._gain = _gain(decoder)
        vocabulary, width = self._weight.shape
        count = min(vocabulary, _ROWS * width)
        places = torch.linspace(0, vocabulary - 1, count, dtype=torch.float64, device=self._weight.device).long()
        parts = places.split(_AT_A_TIME)
        self._mean = sum(self._rows(part).sum(0) for part in parts) / len(places)
        covariance = sum((centred := self._rows(part) - self._mean).T @ centred for part in parts) / len(places)
        covariance.diagonal().add_(_RIDGE * covariance.diagonal().mean())
        self._factor = torch.linalg.cholesky(covariance)

    def _rows(self, labels: Tensor) -> Tensor:
        """w `[labels, d]`, fp32."""
        return entries(self._weight, labels).float() * self._gain

    @torch.no_grad()
    def __call__(self, labels: Sequence[int]) -> Tensor:
        rows = self._rows(torch.tensor(labels, dtype=torch.int64, device=self._weight.device)) - self._mean
        return F.normalize(torch.cholesky_solve(rows.T, self._factor).T, dim=-1)


def readable_head(decoder: Decoder) -> bool:
    """Whether the head is a matrix of numbers that are there: not quantised, nor kept on a disk."""
    weight = getattr(decoder.head, "weight", None)
    # A quantised one is often of a class of its own, and names the dtype that it stands for.
    plain = isinstance(weight, Tensor) and (type(weight.data) is Tensor or is_split(weight))
    return plain and weight.is_floating_point() and weight.dim() == 2 and not weight.is_meta


def _gain(decoder: Decoder) -> Tensor:
    """The final norm's gain `[d]`, whatever it calls it: half of what it gives for 1, -1, 1, ... less for the negative.

    Such an input has no mean to be taken off and a norm of one; a bias falls out.
    """
    weight = decoder.head.weight
    alternating = torch.ones(1, weight.shape[1], dtype=weight.dtype, device=weight.device)
    alternating[:, 1::2] = -1
    norm = decoder.body.norm
    device = next(norm.parameters(), weight).device
    there = alternating.to(device)
    return (((norm(there) - norm(-there)) * there)[0] / 2).float().to(weight.device)
