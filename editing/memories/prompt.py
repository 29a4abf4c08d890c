"""Edits kept as text: what is put before a request's question, for the model to read."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import CorrigendaError


class PromptMemory:
    """The memory of methods that retrieve: each edit is a text, put before the question that is routed to it.

    It adds nothing to any layer: a routed prompt is another prompt, and all else passes as if there were no edits.
    """

    def __init__(self) -> None:
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

    def view(self) -> PromptMemory:
        """The memory as it is now, for a reader: later writes to this one do not show there."""
        view = copy.copy(self)
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
