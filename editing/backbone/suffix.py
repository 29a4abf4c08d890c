"""The layers above the edited one: an edit's loss as a function of what the memory adds below them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .decoder import Decoder, causal_mask, mask_after
from .frozen import PromptCache, Row, padded_ids
from .last_layer import LabelPositions, knows
from .own_forward import OwnForward

_LOGITS_AT_A_TIME = 128
"""Tokens whose logits are kept at once, where nothing but the largest is asked of them: 66 MB of LLaMA-3's."""


class Suffix:
    """The layers above the edited one, as a function of what the memory adds to its output.

    Rows of equal or like length run side by side, padded on the right. Tokens before `starts[i]` in row i are out of
    the memory's reach: they pass these layers once, here, and leave their keys and values; a step runs the rest. What
    steps need to know of the rows is found here too: to look for it in a step would be to wait for a GPU.
    """

    def __init__(
        self,
        decoder: Decoder,
        layer: int,
        hidden: Sequence[Tensor],
        rows: Sequence[Row],
        starts: Sequence[int],
    ) -> None:
        self.decoder = decoder
        self.layer = layer
        device, width = hidden[0].device, hidden[0].shape[1]
        counts = [len(h) - start for h, start in zip(hidden, starts)]
        self.hidden = torch.zeros(len(rows), max(counts), width, dtype=hidden[0].dtype, device=device)
        self.valid = torch.zeros(self.hidden.shape[:2], dtype=torch.bool, device=device)
        self.labels = torch.full(self.hidden.shape[:2], -100, dtype=torch.int64, device=device)
        for i, (h, row, start) in enumerate(zip(hidden, rows, starts)):
            self.hidden[i, : counts[i]] = h[start:]
            self.valid[i, : counts[i]] = True
            self.labels[i, len(row.prompt) - 1 - start : counts[i]] = torch.tensor(
                row.labels, dtype=torch.int64, device=device
            )
        self.starts = torch.tensor(starts, dtype=torch.int64, device=device)
        self.cache = self._cache_prompts([h[:start] for h, start in zip(hidden, starts)])
        self._look()

    @torch.no_grad()
    def _look(self) -> None:
        """Find where the rows' tokens and labels are, and what attention makes of their positions."""
        length, dtype = self.hidden.shape[1], self.hidden.dtype
        asked = self.labels != -100
        self.touched = self.valid.view(-1).nonzero()[:, 0]
        self.asked = asked.view(-1).nonzero()[:, 0]
        self.answers = self.labels.view(-1)[self.asked]
        self.positions = self.starts[:, None] + torch.arange(length, dtype=torch.int64, device=self.hidden.device)
        self.mask = mask_after(self.starts, self.cache.length if self.cache else 0, length, dtype)
        self.angles = self.decoder.angles(self.hidden.to(self.decoder.device(self.layer + 1)), self.positions)
        self.at_last = None
        # Few tokens are asked about when the prompt is run too; LLaMA's and Mistral's last layer then does less.
        if self.cache is None and knows(self.decoder.layers[-1]):
            self.at_last = LabelPositions(asked, self.angles, self.mask, self.decoder.device(-1))

    @torch.no_grad()
    def _cache_prompts(self, prompts: Sequence[Tensor]) -> PromptCache | None:
        longest = max(len(prompt) for prompt in prompts)
        if longest == 0:
            return None
        hidden = torch.stack([F.pad(prompt, (0, 0, 0, longest - len(prompt))) for prompt in prompts])
        positions = torch.arange(longest, dtype=torch.int64, device=hidden.device)[None]
        cache = PromptCache()
        with self.decoder.masked_attention():
            mask = causal_mask(longest, hidden.dtype, hidden.device)
            self.decoder.keep(hidden, self.layer + 1, positions, mask, cache)
        cache.recording = False
        return cache

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits, fp32 `[labels, vocabulary]`, of what `last_hidden` gave."""
        return self.decoder.logits(hidden)

    def label_losses(self, hidden: Tensor, answers: Tensor) -> Tensor:
        """Cross-entropy of the answers, fp32 `[labels]`, of what `last_hidden` gave."""
        return self.decoder.label_losses(hidden, answers)

    def select(self, rows: Tensor) -> Suffix:
        """The same for some of the rows; `losses` then takes and gives theirs alone."""
        suffix = object.__new__(Suffix)
        suffix.decoder, suffix.layer = self.decoder, self.layer
        suffix.hidden, suffix.valid, suffix.labels = self.hidden[rows], self.valid[rows], self.labels[rows]
        suffix.starts = self.starts[rows]
        suffix.cache = None if self.cache is None else self.cache.select(rows)
        suffix._look()
        return suffix

    def losses(self, delta: Tensor) -> Tensor:
        """Cross-entropy of the labels, fp32 `[rows, length]` (0 where there is none).

        delta: `[tokens, d]`, what the memory adds at the valid positions, in row order.
        """
        return suffix_losses([self], [delta])[0]

    @torch.no_grad()
    def predicted(self, delta: Tensor) -> Tensor:
        """bool `[rows]`: whether each of a row's labels is what the model would say there, given those before it."""
        hidden = self.last_hidden(delta)
        parts = zip(hidden.split(_LOGITS_AT_A_TIME), self.answers.split(_LOGITS_AT_A_TIME))
        wrong = torch.cat([self.logits(part).argmax(-1).to(labels) != labels for part, labels in parts])
        rows = self.asked // self.labels.shape[1]
        return rows.new_zeros(len(self.labels)).index_add(0, rows, wrong.to(rows)) == 0

    def last_hidden(self, delta: Tensor) -> Tensor:
        """What the last layer makes of the positions that a label is predicted from, `[labels, d]` in row order."""
        shape, depth = self.hidden.shape, len(self.decoder)
        hidden = self.hidden.view(-1, shape[2]).index_add(0, self.touched, delta.to(self.hidden.dtype)).view(shape)
        last = depth if self.at_last is None else depth - 1
        with self.decoder.masked_attention():
            hidden = self.decoder.run(hidden, self.layer + 1, last, self.positions, self.mask, self.cache, self.angles)
            if self.at_last is not None:
                return self.decoder.last_layer_at(hidden, self.at_last)
        return hidden.flatten(0, 1).index_select(0, self.asked.to(hidden.device))


class OwnSuffix(Suffix):
    """The same by the model's own forward, for models that are no plain residual stack: whole rows each step.

    What the rows' tokens up to the layer make is found again here, for those above take more of it than hidden states.
    """

    def __init__(self, decoder: Decoder, layer: int, rows: Sequence[Row], starts: Sequence[int]) -> None:
        self.decoder, self.layer, self.cache = decoder, layer, None
        self.own = OwnForward(
            decoder.body, decoder.layers, layer, padded_ids([r.tokens for r in rows], decoder.device(0))
        )
        self.hidden = self.own.hidden
        device = self.hidden.device
        self.valid = torch.zeros(self.hidden.shape[:2], dtype=torch.bool, device=device)
        self.labels = torch.full(self.hidden.shape[:2], -100, dtype=torch.int64, device=device)
        for i, (row, start) in enumerate(zip(rows, starts)):
            self.valid[i, start : len(row.tokens)] = True
            labels = torch.tensor(row.labels, dtype=torch.int64, device=device)
            self.labels[i, len(row.prompt) - 1 : len(row.tokens)] = labels
        self._look()

    def _look(self) -> None:
        self.touched = self.valid.view(-1).nonzero()[:, 0]
        self.asked = (self.labels != -100).view(-1).nonzero()[:, 0]
        self.answers = self.labels.view(-1)[self.asked]

    def select(self, rows: Tensor) -> OwnSuffix:
        suffix = object.__new__(OwnSuffix)
        suffix.decoder, suffix.layer, suffix.cache = self.decoder, self.layer, None
        suffix.own = self.own.select(rows)
        suffix.hidden, suffix.valid, suffix.labels = suffix.own.hidden, self.valid[rows], self.labels[rows]
        suffix._look()
        return suffix

    def last_hidden(self, delta: Tensor) -> Tensor:
        added = delta.new_zeros(self.valid.numel(), delta.shape[1]).index_add(0, self.touched, delta)
        hidden = self.own.after(added.view(*self.valid.shape, -1))
        return hidden.flatten(0, 1).index_select(0, self.asked.to(hidden.device))

    def logits(self, hidden: Tensor) -> Tensor:
        return self.decoder.own_logits(hidden, self.own.form).float()

    def label_losses(self, hidden: Tensor, answers: Tensor) -> Tensor:
        logits = self.logits(hidden)
        return F.cross_entropy(logits, answers.to(logits.device), reduction="none")


def suffix_of(
    decoder: Decoder, layer: int, hidden: Sequence[Tensor], rows: Sequence[Row], starts: Sequence[int]
) -> Suffix:
    """The layers above `layer` for these rows, in whichever way the model allows; the arguments of `Suffix`."""
    if decoder.runs_plainly(layer, max(len(row.tokens) for row in rows)):
        return Suffix(decoder, layer, hidden, rows, starts)
    return OwnSuffix(decoder, layer, rows, starts)


def suffix_losses(suffixes: Sequence[Suffix], deltas: Sequence[Tensor]) -> list[Tensor]:
    """`Suffix.losses` of several. What they predict passes the head together, which then reads its weight once.

    For a dozen answer tokens that reading, 113 MB of SmolLM2's, is most of the head's time on a CPU.
    """
    hidden = torch.cat([suffix.last_hidden(delta) for suffix, delta in zip(suffixes, deltas)])
    answers = torch.cat([suffix.answers for suffix in suffixes])
    losses = suffixes[0].label_losses(hidden, answers).to(deltas[0].device)
    return [
        losses.new_zeros(suffix.labels.numel()).scatter(0, suffix.asked, part).view(suffix.labels.shape)
        for suffix, part in zip(suffixes, losses.split([len(suffix.asked) for suffix in suffixes]))
    ]
