"""How likely an edited model finds continuations, each after a context that is its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from corrigenda.editing import EditedModel

TOKENS = 1024
"""In a pass: its logits are 200 kB a token."""


class Loglikelihoods(NamedTuple):
    """By pair, in order: the log-probability of the continuation, and whether greedy decoding writes it.

    applied: of how many pairs an edit was applied to the context.
    """

    scores: list[tuple[float, bool]]
    applied: int


@torch.no_grad()
def loglikelihoods(edited: EditedModel, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Loglikelihoods:
    """Of pairs (context, continuation) of token ids, each continuation routed by its context, as generation routes it.

    Pairs of one length share passes, so nothing is padded.
    """
    found: dict[int, tuple[float, bool]] = {}
    applied = 0
    lengths: dict[int, list[int]] = {}
    for i, (context, continuation) in enumerate(pairs):
        lengths.setdefault(len(context) + len(continuation), []).append(i)
    device = edited.decoder.device(0)
    for length, group in sorted(lengths.items()):
        size = max(1, TOKENS // length)
        for part in (group[at : at + size] for at in range(0, len(group), size)):
            ids = torch.tensor([[*pairs[i][0], *pairs[i][1]] for i in part], dtype=torch.int64, device=device)
            prompts = [len(pairs[i][0]) for i in part]
            with edited.teacher_forcing(ids, prompts, [length] * len(part)) as routes:
                logits = edited.model(ids).logits.float()
                applied += sum(route >= 0 for route in routes())
            for i, row, tokens, prompt in zip(part, logits, ids, prompts):
                said = row[prompt - 1 : -1].log_softmax(-1)
                labels = tokens[prompt:]
                greedy = bool((said.argmax(-1) == labels).all())
                found[i] = float(said.gather(1, labels[:, None]).sum()), greedy
    return Loglikelihoods([found[i] for i in range(len(pairs))], applied)
