"""Named ranges for profilers around what edits cost; chosen once by `CORRIGENDA_SCOPES=off|nvtx|record_function`."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from typing import Any

import torch

from .errors import CorrigendaError

KINDS = ("off", "nvtx", "record_function")

_NOTHING = contextlib.nullcontext()


@functools.cache
def _chosen() -> Callable[[str], contextlib.AbstractContextManager[Any]]:
    kind = os.environ.get("CORRIGENDA_SCOPES", "off")
    if kind not in KINDS:
        raise CorrigendaError(f"CORRIGENDA_SCOPES must be one of {', '.join(KINDS)}, not {kind!r}.")
    if kind == "record_function":
        return torch.profiler.record_function
    if kind == "nvtx":
        try:
            import nvtx  # works without a GPU, where torch.cuda.nvtx raises
        except ImportError:
            raise CorrigendaError(
                "CORRIGENDA_SCOPES=nvtx needs the package nvtx: pip install nvtx, or use record_function."
            ) from None
        return lambda name: nvtx.annotate(name, domain="corrigenda")
    return lambda name: _NOTHING


def scope(name: str) -> contextlib.AbstractContextManager[Any]:
    """`with scope("edit: residual"):` marks a range; in host code only, for traced code cannot hold it."""
    return _chosen()(name)
