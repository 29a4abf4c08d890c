"""What a method hands to the ledger: one edit, as exactly that from which the memory is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import CorrigendaError

LARGEST = 2.0**15
"""No value of an edit is larger: float16 ends at 65,504, and what the layer itself puts out must fit beside it."""


class Written(NamedTuple):
    """How the writing of one edit ended: its mean cross-entropy, after how many steps, and whether it holds.

    held: greedy decoding of the edit's own prompt, in its own format, gives its target, and its end where that is
    learnt: by its own memory, as its batch leaves that. None where nobody asked, in ledgers of earlier versions.
    """

    loss: float
    steps: int
    held: bool | None = None


class Record(NamedTuple):
    """One edit. `Method.apply` writes the memory from records alone, so a rebuilt memory has the live one's bits.

    tensors      what the edit adds to the memory; names and shapes are the method's `record_shapes`
    numbers      what else the writing needs; floats survive JSON exactly
    fingerprint  int32 `[n]`: what the router knows the edit by (token ids, or the words of a mask); empty where
                 several edits share what a route names
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, float]
    fingerprint: Tensor


class Solved(NamedTuple):
    """An edit that is solved and not yet written."""

    written: Written
    record: Record


def on_cpu(solved: Sequence[Solved]) -> list[Solved]:
    """The same with every tensor on the CPU, for other processes."""
    return [
        one._replace(
            record=one.record._replace(
                tensors={name: tensor.cpu() for name, tensor in one.record.tensors.items()},
                fingerprint=one.record.fingerprint.cpu(),
            )
        )
        for one in solved
    ]


def of_rank(rank: int, x: Tensor, h: Tensor) -> dict[str, Tensor]:
    """The tensors "x" and "h" of `rank` rows whose update is the best approximation of `x^T h`."""
    left, left_rest = torch.linalg.qr(x.T)
    right, right_rest = torch.linalg.qr(h.T)
    u, singular, v = torch.linalg.svd(left_rest @ right_rest.T)
    rank = min(rank, len(singular))
    root = singular[:rank].sqrt()
    return {"x": (left @ (u[:, :rank] * root)).T, "h": (right @ (v[:rank].T * root)).T}


def check_values(tensors: Mapping[str, Tensor]) -> None:
    """Raise unless every value is finite and at most `LARGEST`: one that is not spoils whatever passes beside it."""
    for name, tensor in tensors.items():
        if tensor.numel() and not bool(tensor.detach().abs().amax() <= LARGEST):  # of NaN, every comparison is false
            raise CorrigendaError(f'its tensor "{name}" has values that are not finite or beyond {LARGEST:.0f}')


def sizes_of(settings: Mapping[str, Any], widths: Sequence[int]) -> dict[str, int]:
    """By letter, the sizes that a configuration and the widths of its layer fix: "D", "d", "k" and "p"."""
    sizes = dict(zip("Dd", widths))
    for letter, name in (("k", "top_k"), ("p", "key_dimensions")):
        if settings.get(name) is not None:
            sizes[letter] = settings[name]
    return sizes


def check_tensors(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[str, ...]], sizes: Mapping[str, int]
) -> None:
    """Raise unless `tensors` are those that `shapes` names, of floats that `check_values` takes.

    A letter is one size throughout, fixed where in `sizes`.
    """
    if tensors.keys() != shapes.keys():
        raise CorrigendaError(f"its tensors are {', '.join(sorted(tensors))}, not {', '.join(sorted(shapes))}")
    known = dict(sizes)
    for name, letters in shapes.items():
        found = tuple(tensors[name].shape)
        wanted = tuple(known.setdefault(letter, size) for letter, size in zip(letters, found))
        if len(found) != len(letters) or found != wanted or not tensors[name].is_floating_point():
            raise CorrigendaError(f'its tensor "{name}" has the shape {list(found)}, not [{", ".join(letters)}]')
    check_values(tensors)
