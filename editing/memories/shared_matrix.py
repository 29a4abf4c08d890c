"""The shared memory of MEMOIR: one residual matrix, of which every edit owns some columns."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels import ops
from ..views import Viewed
from .memory import matrix_norms


class SharedMatrix(Viewed):
    """MEMOIR's memory: one residual matrix W, read through the routed edit's mask m as `y += W (m * x)`.

    `weight` is W transposed, `[D, d]` fp32, so that the columns an edit may use are contiguous rows. The masks are the
    router's: what names an edit also says where it is stored.
    """

    def __init__(self, width: int, out_width: int, device: torch.device) -> None:
        super().__init__()
        self.weight = torch.zeros(width, out_width, dtype=torch.float32, device=device)
        self.masks: Tensor | None = None

    def writable(self) -> Tensor:
        """`weight`, to be changed in place: its own copy where a view still reads the old one."""
        if self._parted():
            self.weight = self.weight.clone()
        return self.weight

    def reset(self, start: Tensor | None = None) -> None:
        """Back to no edits: zero, or a matrix that was there before the first."""
        weight = self.writable()
        if start is None:
            weight.zero_()
        else:
            weight.copy_(start)

    def read_(self, out: Tensor, x: Tensor, route: Tensor, first: Tensor) -> None:
        """Add to `out` `[tokens, d]`, in place, what the edits in `route` say of `x` `[tokens, D]`."""
        if self.masks is not None and len(self.masks):
            ops.masked_linear_(out, x, self.weight, self.masks, route)

    def norms(self) -> dict[str, float]:
        return matrix_norms([self.weight])

    def state(self) -> dict[str, Tensor]:
        return {"memory.weight": self.weight}
