"""What editing never changes, computed once: the layers up to the edited one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .decoder import Decoder, mask_after
from .own_forward import OwnForward


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
    padded = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long, device="cpu")
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.tensor(row, dtype=torch.int64, device="cpu")
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


class PromptCache:
    """Keys and values of tokens that no memory touches; attention modules take it for a transformers cache."""

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.recording = True

    @property
    def length(self) -> int:
        """Tokens that are kept of each row, padding included."""
        return 0 if self.recording else next(iter(self.keys.values())).shape[2]

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


class Beginnings:
    """What rows may begin with, contexts and a template's opening, passed through the frozen layers once for all.

    Of an edit's 93 tokens in four contexts on SmolLM2, 26 are every edit's.
    """

    @torch.no_grad()
    def __init__(self, decoder: Decoder, layer: int, sequences: Sequence[Sequence[int]]) -> None:
        self.sequences = sequences
        self.cache = PromptCache()
        self.features = _pass(decoder, layer, sequences, [0] * len(sequences), self.cache)
        self.cache.recording = False

    def of(self, row: Sequence[int]) -> tuple[int, int]:
        """Which sequence a row has most tokens in common with, and how many: all but its last at most."""
        shared = [len(common_beginning(sequence, row[:-1])) for sequence in self.sequences]
        most = max(range(len(shared)), key=shared.__getitem__)
        return most, shared[most]


def common_beginning(first: Sequence[int], second: Sequence[int]) -> Sequence[int]:
    """The tokens that both begin with."""
    differs = (i for i, (a, b) in enumerate(zip(first, second)) if a != b)
    return first[: next(differs, min(len(first), len(second)))]


@torch.no_grad()
def frozen_features(
    decoder: Decoder,
    layer: int,
    rows: Sequence[Sequence[int]],
    budget: int | None = None,
    beginnings: Beginnings | None = None,
) -> list[Features]:
    """The layers up to and including `layer`, once, for token rows of any lengths, in padded groups of like length.

    With 192 tokens a group on a CPU, padding and products cost least: SmolLM2's layers take 89 ms an edit of a batch of
    8 so, 104 with 1,024.
    """
    if not decoder.runs_plainly(layer, max(map(len, rows), default=0)):
        return _own_features(decoder, layer, rows, budget)
    features: list[Features | None] = [None] * len(rows)
    begun = [beginnings.of(row) if beginnings else (0, 0) for row in rows]
    lengths = [len(row) - known for row, (_, known) in zip(rows, begun)]
    for group in length_groups(lengths, budget or pass_tokens(decoder.device(0), 192)):
        sequences, starts = zip(*(begun[i] for i in group))
        cache = (
            beginnings.cache.select(torch.tensor(sequences, dtype=torch.int64, device="cpu")) if any(starts) else None
        )
        found = _pass(decoder, layer, [rows[i][begun[i][1] :] for i in group], starts, cache)
        for i, sequence, start, own in zip(group, sequences, starts, found):
            features[i] = own
            if start:
                before = beginnings.features[sequence]
                features[i] = Features(*(torch.cat([b[:start], o]) for b, o in zip(before, own)))
    return features


def _own_features(decoder: Decoder, layer: int, rows: Sequence[Sequence[int]], budget: int | None) -> list[Features]:
    """The same by the model's own forward, whole rows each time."""
    features: list[Features | None] = [None] * len(rows)
    for group in length_groups(list(map(len, rows)), budget or pass_tokens(decoder.device(0), 192)):
        ids = padded_ids([rows[i] for i in group], decoder.device(0))
        own = OwnForward(decoder.body, decoder.layers, layer, ids)
        inputs = decoder.whole_inputs(layer, own.inputs)
        for place, i in enumerate(group):
            parts = inputs[place, : len(rows[i])], own.hidden[place, : len(rows[i])]
            features[i] = Features(*(part.clone() for part in parts))
    return features


def _pass(
    decoder: Decoder, layer: int, rows: Sequence[Sequence[int]], starts: Sequence[int], cache: PromptCache | None
) -> list[Features]:
    """Rows side by side, row i after `starts[i]` tokens that the cache keeps; a new cache records these."""
    ids = padded_ids(rows, decoder.device(0))
    after = torch.tensor(starts, dtype=torch.int64, device=ids.device)
    positions = after[:, None] + torch.arange(ids.shape[1], dtype=torch.int64, device=ids.device)
    dtype = decoder.model.get_input_embeddings().weight.dtype
    mask = mask_after(after, cache.length if cache else 0, ids.shape[1], dtype)
    with decoder.masked_attention(), tapped(decoder.down_proj(layer)) as taken:
        hidden = decoder.run(decoder.embed(ids), 0, layer + 1, positions, mask, cache)
    inputs = decoder.whole_inputs(layer, taken[0]).view(*ids.shape, -1)
    return [Features(inputs[i, : len(row)].clone(), hidden[i, : len(row)].clone()) for i, row in enumerate(rows)]
