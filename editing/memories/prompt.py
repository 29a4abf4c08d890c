"""Edits kept as text: what is put before a request's question, for the model to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ..errors import CorrigendaError
from ..views import Viewed
from .adapters import AdapterPart, LowRankAdapters


class PromptMemory(Viewed):
    """The memory of methods that retrieve: each edit is a text, put before the question that is routed to it.

    It adds nothing to any layer: a routed prompt is another prompt, and all else passes as if there were no edits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    @property
    def size(self) -> int:
        return len(self.texts)

    def append(self, text: str) -> None:
        """Store one more edit's text."""
        self.texts.append(text)

    def remove(self, edits: set[int]) -> None:
        """Drop these edits' texts; the others move up."""
        self.texts = [text for edit, text in enumerate(self.texts) if edit not in edits]

    def reset(self) -> None:
        """Back to no edits."""
        self.texts = []

    def view(self) -> Self:
        view = super().view()
        view.texts = list(self.texts)
        return view

    def read_(self, out: Tensor, x: Tensor, route: Tensor, first: Tensor) -> None:
        """Nothing is added to any output."""

    def norms(self) -> dict[str, float]:
        lengths = [len(text.encode()) for text in self.texts]
        return {"norm": float(sum(lengths)), "largest_edit": float(max(lengths, default=0)), "bytes": sum(lengths)}

    def state(self) -> dict[str, Tensor]:
        """Each edit's bytes, one row of them after the other, and how many each has."""
        rows = [text_tensor(text) for text in self.texts]
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64, device="cpu")
        return {"memory.texts": torch.cat([text_tensor(""), *rows]), "memory.lengths": lengths}


class AlignedPart(NamedTuple):
    """The adapter of one map, which every routed token passes."""

    adapter: AdapterPart

    def read_(self, out: Tensor, x: Tensor, route: Tensor, first: Tensor) -> None:
        """Add the adapter's output to `out` `[tokens, d]`, in place, where `route` is not -1."""
        self.adapter.read_(out, x, route.clamp(max=0), first)


class AlignedPrompts(PromptMemory):
    """LTE's memory: texts, and the adapters by which a model was taught to read them, the same for all of them."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], rank: int, devices: Mapping[str, torch.device]) -> None:
        super().__init__()
        self._adapters = LowRankAdapters(shapes, rank, devices)
        nothing = {
            site: tuple(torch.zeros(rank, width, dtype=torch.float32, device="cpu") for width in both)
            for site, both in shapes.items()
        }
        self.align(nothing)

    def align(self, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Take over the adapters: down `[rank, D]` and up `[rank, d]` of each map."""
        self._adapters.reset()
        self._adapters.append(pairs, 1)

    @property
    def pairs(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Of each map: down `[rank, D]` and up `[rank, d]`, fp32."""
        parts = {site: self._adapters.part(site) for site in self._adapters.shapes}
        return {site: (part.down[0], part.up[0]) for site, part in parts.items()}

    def part(self, site: str) -> AlignedPart:
        return AlignedPart(self._adapters.part(site))

    def view(self) -> Self:
        view = super().view()
        view._adapters = self._adapters.view()
        return view

    def state(self) -> dict[str, Tensor]:
        return {**super().state(), **self._adapters.state()}


def text_tensor(text: str) -> Tensor:
    """float16 `[bytes]`: a text's UTF-8 bytes, as a record keeps it."""
    return torch.tensor(list(text.encode()), dtype=torch.float16, device="cpu")


def text_of(tensor: Tensor) -> str:
    """The text of `text_tensor`; raises where it is none."""
    values = tensor.tolist()
    if all(value == int(value) and 0 <= value < 256 for value in values):
        try:
            return bytes(map(int, values)).decode()
        except UnicodeDecodeError:
            pass
    raise CorrigendaError('its tensor "text" is not one of UTF-8 bytes')


def put_before(ids: Sequence[int], text: Sequence[int], place: int) -> list[int]:
    """A tokenised prompt with the tokens of a text before the one at `place`; its own tokens stay as they are."""
    return [*ids[:place], *text, *ids[place:]]
