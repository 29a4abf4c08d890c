"""What a folder says of its router by meaning: the encoder, the decoys, and those that its user added."""

from __future__ import annotations

import json

import numpy as np
import torch
from torch import Tensor

from ...errors import CorrigendaError
from .encoder import Encoder

_NAME = "router.meaning"


def ground_of(encoder: Encoder, decoys: str, own: tuple[str, ...]) -> dict[str, Tensor]:
    """As a tensor that a ledger keeps: JSON, in int32 `[1, n]`."""
    text = json.dumps({"encoder": encoder.name, "digest": encoder.digest, "decoys": decoys, "own": own}).encode()
    data = np.frombuffer(text + b" " * (-len(text) % 4), dtype="<i4").copy()
    return {_NAME: torch.from_numpy(data)[None]}


def read_ground(tensors: dict[str, Tensor], encoder: Encoder) -> tuple[str, ...]:
    """The decoys that a user added; raises where the edits were written with another encoder."""
    try:
        said = json.loads(tensors[_NAME].numpy().astype("<i4").tobytes())
        digest, own = said["digest"], tuple(said["own"])
    except (KeyError, ValueError, TypeError, RecursionError):
        raise CorrigendaError("what it says of its router by meaning cannot be read") from None
    if digest != encoder.digest:
        raise CorrigendaError(
            f'it was written with another encoder than "{encoder.name}" is here: install that one '
            f"({said.get('encoder')!r}), or write its edits anew (`corrigenda export`)"
        )
    if not all(isinstance(text, str) for text in own):
        raise CorrigendaError("what it says of its router by meaning cannot be read")
    return own
