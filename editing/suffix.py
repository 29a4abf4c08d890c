"""The layers above the edited one: an edit's loss as a function of what the memory adds below them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .decoder import Decoder, causal_mask, mask_after
from .frozen import PromptCache, Row
from .last_layer import knows


class Suffix:
    """The layers above the edited one, as a function of what the memory adds to its output.

    Rows of equal or like length run side by side, padded on the right. Tokens before `starts[i]` in row i are out of
    the memory's reach: they pass these layers once, here, and leave their keys and values; a step runs the rest.
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
        self.labels = torch.full(self.hidden.shape[:2], -100, device=device)
        for i, (h, row, start) in enumerate(zip(hidden, rows, starts)):
            self.hidden[i, : counts[i]] = h[start:]
            self.valid[i, : counts[i]] = True
            self.labels[i, len(row.prompt) - 1 - start : counts[i]] = torch.tensor(row.labels, device=device)
        self.starts = torch.tensor(starts, device=device)
        self.cache = self._cache_prompts([h[:start] for h, start in zip(hidden, starts)])

    @torch.no_grad()
    def _cache_prompts(self, prompts: Sequence[Tensor]) -> PromptCache | None:
        longest = max(len(prompt) for prompt in prompts)
        if longest == 0:
            return None
        hidden = torch.stack([F.pad(prompt, (0, 0, 0, longest - len(prompt))) for prompt in prompts])
        positions = torch.arange(longest, device=hidden.device)[None]
        cache = PromptCache()
        with self.decoder.masked_attention():
            mask = causal_mask(longest, hidden.dtype, hidden.device)
            self.decoder.run(hidden, self.layer + 1, len(self.decoder), positions, mask, cache)
        cache.recording = False
        return cache

    def select(self, rows: Tensor) -> Suffix:
        """The same for some of the rows; `losses` then takes and gives theirs alone."""
        suffix = object.__new__(Suffix)
        suffix.decoder, suffix.layer = self.decoder, self.layer
        suffix.hidden, suffix.valid, suffix.labels = self.hidden[rows], self.valid[rows], self.labels[rows]
        suffix.starts = self.starts[rows]
        suffix.cache = None if self.cache is None else self.cache.select(rows)
        return suffix

    def losses(self, delta: Tensor) -> Tensor:
        """Cross-entropy of the labels, fp32 `[rows, length]` (0 where there is none).

        delta: `[tokens, d]`, what the memory adds at the valid positions, in row order.
        """
        return suffix_losses([self], [delta])[0]

    def last_hidden(self, delta: Tensor) -> Tensor:
        """What the last layer makes of the positions that a label is predicted from, `[labels, d]` in row order."""
        rows, length, width = self.hidden.shape
        hidden = self.hidden.view(-1, width).index_add(
            0, self.valid.view(-1).nonzero()[:, 0], delta.to(self.hidden.dtype)
        )
        positions = self.starts[:, None] + torch.arange(length, device=hidden.device)
        asked = self.labels != -100
        depth = len(self.decoder)
        # Few tokens are asked about when the prompt is run too; LLaMA's and Mistral's last layer then does less.
        sparse = self.cache is None and knows(self.decoder.layers[-1])
        with self.decoder.masked_attention():
            mask = mask_after(self.starts, self.cache.length if self.cache else 0, length, hidden.dtype)
            hidden = hidden.view(rows, length, width)
            hidden = self.decoder.run(hidden, self.layer + 1, depth - sparse, positions, mask, self.cache)
            if sparse:
                hidden = self.decoder.last_layer_at(hidden, asked, positions, mask)
            else:
                hidden = hidden[asked.to(hidden.device)]
        return hidden


def suffix_losses(suffixes: Sequence[Suffix], deltas: Sequence[Tensor]) -> list[Tensor]:
    """`Suffix.losses` of several. What they predict passes the head together, which then reads its weight once.

    For a dozen answer tokens that reading, 113 MB of SmolLM2's, is most of the head's time on a CPU.
    """
    hidden = torch.cat([suffix.last_hidden(delta) for suffix, delta in zip(suffixes, deltas)])
    asked = [suffix.labels != -100 for suffix in suffixes]
    labels = [suffix.labels[where] for suffix, where in zip(suffixes, asked)]
    losses = suffixes[0].decoder.label_losses(hidden, torch.cat(labels)).to(deltas[0].device)
    return [
        torch.zeros(where.shape, device=losses.device).masked_scatter(where, part)
        for where, part in zip(asked, losses.split([len(of_suffix) for of_suffix in labels]))
    ]
