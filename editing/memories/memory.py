"""What is asked of a memory: the residual beside a down-projection."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Memory(Protocol):
    """What a layer asks of a memory: to add to `out` `[tokens, d]` what the routed edits say of `x` `[tokens, D]`."""

    def read_(self, out: Tensor, x: Tensor, route: Tensor, first: Tensor) -> None: ...
