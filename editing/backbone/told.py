"""How a model answers rows of prompt and labels as it is: their loss, and whether greedy decoding gives the labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .decoder import Decoder
from .frozen import Row, length_groups, padded_ids, pass_tokens

_TOKENS = 1024
"""Padded tokens in one pass on a CPU."""


def row_losses(decoder: Decoder, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Of rows side by side: mean cross-entropy of each one's labels `[rows]`, and whether all are the first choice.

    Gradients go through it, to whatever adapters the model has.
    """
    device = decoder.model.get_input_embeddings().weight.device
    ids = padded_ids([row.tokens for row in rows], device)
    mask = padded_ids([[1] * len(row.tokens) for row in rows], device)
    hidden = decoder.body(input_ids=ids, attention_mask=mask, use_cache=False)[0]
    asked = torch.cat([hidden[i, len(row.prompt) - 1 : len(row.tokens)] for i, row in enumerate(rows)])
    logits = decoder.head(asked).float()
    labels = torch.tensor([label for row in rows for label in row.labels], dtype=torch.int64, device=logits.device)
    counts = [len(row.labels) for row in rows]
    losses = F.cross_entropy(logits, labels, reduction="none").split(counts)
    right = (logits.argmax(-1) == labels).split(counts)
    return torch.stack([part.mean() for part in losses]), torch.stack([part.all() for part in right])


@torch.no_grad()
def label_losses_of(decoder: Decoder, rows: Sequence[Row]) -> list[tuple[float, bool]]:
    """The same of any number of rows, in groups of like length."""
    found: list[tuple[float, bool]] = [(0.0, False)] * len(rows)
    budget = pass_tokens(decoder.device(0), _TOKENS)
    for group in length_groups([len(row.tokens) for row in rows], budget):
        losses, right = row_losses(decoder, [rows[i] for i in group])
        for i, loss, held in zip(group, losses.tolist(), right.tolist()):
            found[i] = loss, held
    return found
