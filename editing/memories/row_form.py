"""In what form the rows of an edit are kept: how wide keys are, and of which type values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.reference import unpack_mask
from .random_bits import random_bits

_STREAM = 0x6B657973
"""Of random bits: "keys"."""

_LARGEST = 127
"""Of int8, in which -128 is not used: a row and its negative are then rounded alike."""


class Rows(NamedTuple):
    """The rows of one edit, as they are kept: keys `[rows, D or fewer]`, values `[rows, d]`, scales float32 `[rows]`.

    Scales are there with int8 values, which they multiply.
    """

    keys: Tensor
    values: Tensor
    scales: Tensor | None = None

    @property
    def read_values(self) -> Tensor:
        """`[rows, d]`, as the layer adds them."""
        return self.values if self.scales is None else self.values * self.scales[:, None]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self if part is not None)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """As a record holds them."""
        return {name: part for name, part in self._asdict().items() if part is not None}


class RowForm(NamedTuple):
    """The form of rows: `AssociativeConfig` says what its settings mean."""

    key_dimensions: int | None = None
    value_dtype: str = "model"
    seed: int = 0

    @property
    def in_words(self) -> str:
        """As a sentence names it: "keys of 256 (seed 42), values of int8"."""
        keys = "whole keys" if self.key_dimensions is None else f"keys of {self.key_dimensions} (seed {self.seed})"
        values = "the model's type" if self.value_dtype == "model" else self.value_dtype
        return f"{keys}, values of {values}"

    @property
    def has_scales(self) -> bool:
        return self.value_dtype == "int8"

    def dtype(self, model: torch.dtype) -> torch.dtype:
        """Of values, beside a model of this type."""
        return model if self.value_dtype == "model" else getattr(torch, self.value_dtype)

    def key_dtype(self, model: torch.dtype) -> torch.dtype:
        """Of keys: of a cosine, bfloat16 keeps three digits."""
        return model if self == RowForm(seed=self.seed) else torch.bfloat16

    def shapes(self) -> dict[str, tuple[str, ...]]:
        """Of a record's tensors, in letters: "D" and "d" are the layer's widths, "p" that of projected keys."""
        keys = "D" if self.key_dimensions is None else "p"
        scales = {"scales": ("rows",)} if self.has_scales else {}
        return {"keys": ("rows", keys), "values": ("rows", "d"), **scales}

    def projection(self, width: int, device: torch.device) -> Tensor | None:
        """float32 `[width, key_dimensions]`: random signs, so that cosines stay what they were within 1/sqrt of it."""
        if self.key_dimensions is None:
            return None
        bits = random_bits(self.seed, _STREAM, width, self.key_dimensions, 0.5, device)
        signs = unpack_mask(bits, self.key_dimensions).float() * 2 - 1
        return signs / self.key_dimensions**0.5

    def kept(self, keys: Tensor, values: Tensor, model: torch.dtype) -> Rows:
        """Projected keys and float32 values `[rows, d]` of an edit in this form."""
        keys = keys.to(self.key_dtype(model))
        if not self.has_scales:
            return Rows(keys, values.to(self.dtype(model)))
        # A row of zeros has no scale of its own; what is not finite is refused when it is recorded.
        scales = (values.abs().amax(-1) / _LARGEST).float()
        scales = torch.where(scales == 0, 1.0, scales)
        return Rows(keys, (values / scales[:, None]).round().to(torch.int8), scales)

    def rounded(self, values: Tensor) -> Tensor:
        """Values as they will be read."""
        if self.value_dtype == "model":
            return values
        return self.kept(values, values, values.dtype).read_values.to(values.dtype)


WHOLE = RowForm()
"""Rows as wide as the layer, of the model's type."""


def rows_in(tensors: Mapping[str, Tensor]) -> Rows:
    """The rows that a record holds."""
    return Rows(tensors["keys"], tensors["values"], tensors.get("scales"))
