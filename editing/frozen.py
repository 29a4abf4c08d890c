"""What editing never changes, computed once: the layers up to the edited one, and the prompt out of memory's reach."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .decoder import Decoder, causal_mask
from .errors import CorrigendaError
from .last_layer import knows


@dataclass(frozen=True)
class Row:
    """A prompt and what is to follow it, as token ids: the model reads `tokens` and predicts `labels` at the end."""

    prompt: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        """All that is read: the last label is only predicted."""
        return self.prompt + self.labels[:-1]


class Features(NamedTuple):
    """One row: `inputs` `[tokens, D]` of the edited down-projection, `hidden` `[tokens, d]` after its whole layer."""

    inputs: Tensor
    hidden: Tensor


def pass_tokens(device: torch.device, on_cpu: int) -> int:
    """Padded tokens to run side by side: `on_cpu` there, 8,192 elsewhere.

    A GPU needs thousands of tokens to fill; 8,192 logits of 128,256 entries take 4.2 GB in fp32.
    """
    return on_cpu if device.type == "cpu" else 8192


def length_groups(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in groups of similar length whose padded size stays within `budget` tokens (one row at least)."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if group and (len(group) + 1) * lengths[i] > budget:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def padded_ids(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """`[rows, longest]`, padded with 0 on the right, where a causal model cannot see it."""
    padded = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.tensor(row)
    return padded.to(device)


@contextlib.contextmanager
def tapped(module: torch.nn.Module) -> Iterator[list[Tensor]]:
    """Within: a list whose only entry is what `module` last took in."""
    taken: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _module, args: taken.__setitem__(slice(None), [args[0]]))
    try:
        yield taken
    finally:
        handle.remove()


@torch.no_grad()
def frozen_features(
    decoder: Decoder, layer: int, rows: Sequence[Sequence[int]], budget: int | None = None
) -> list[Features]:
    """The layers up to and including `layer`, once, for token rows of any lengths, in padded groups of like length.

    1,024 tokens a group is where one CPU core's GEMM throughput levels off; attention's padding waste stays small.
    """
    window = getattr(decoder.model.config, "sliding_window", None)
    longest = max(map(len, rows), default=0)
    if window and longest > window:
        raise CorrigendaError(
            f"An edit of {longest} tokens is longer than this model's sliding window of {window}: shorten it."
        )
    features: list[Features | None] = [None] * len(rows)
    dtype = decoder.model.get_input_embeddings().weight.dtype
    with decoder.masked_attention(), tapped(decoder.down_proj(layer)) as taken:
        for group in length_groups([len(row) for row in rows], budget or pass_tokens(decoder.device(0), 1024)):
            ids = padded_ids([rows[i] for i in group], decoder.device(0))
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
            mask = causal_mask(ids.shape[1], dtype, ids.device)
            hidden = decoder.run(decoder.embed(ids), 0, layer + 1, positions, mask)
            inputs = taken[0].view(*ids.shape, -1)
            for place, i in enumerate(group):
                length = len(rows[i])
                features[i] = Features(inputs[place, :length].clone(), hidden[place, :length].clone())
    return features


class PromptCache:
    """Keys and values of prompt tokens that no memory touches; attention modules take it for a transformers cache."""

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.recording = True

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """While recording: keep them. After: the kept ones followed by the new ones."""
        if self.recording:
            self.keys[layer], self.values[layer] = keys, values
            return keys, values
        return torch.cat([self.keys[layer], keys], 2), torch.cat([self.values[layer], values], 2)

    def select(self, rows: Tensor) -> PromptCache:
        """The cache of some of the rows."""
        cache = PromptCache()
        cache.keys = {layer: kept[rows] for layer, kept in self.keys.items()}
        cache.values = {layer: kept[rows] for layer, kept in self.values.items()}
        cache.recording = False
        return cache


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

    def _mask(self) -> Tensor:
        length = self.hidden.shape[1]
        causal = causal_mask(length, self.hidden.dtype, self.hidden.device)
        if self.cache is None:
            return causal
        prompt = torch.arange(self.cache.keys[self.layer + 1].shape[2], device=self.hidden.device)
        hidden_prompt = torch.where(prompt < self.starts[:, None], 0.0, torch.finfo(self.hidden.dtype).min)
        hidden_prompt = hidden_prompt.to(self.hidden.dtype)[:, None, None].expand(-1, 1, length, -1)
        return torch.cat([hidden_prompt, causal.expand(len(self.hidden), -1, -1, -1)], 3)

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
            mask = self._mask()
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
