"""One output of a layer for each edit, which stands in the place of the layer's own."""

from __future__ import annotations

import torch
from torch import Tensor

from ..views import Viewed


class ReplacedOutputs(Viewed):
    """GRACE's memory: a routed token's output `[d]` becomes its edit's value; those of other tokens are not written.

    `once`: at the last prompt token alone, as it was learnt; else wherever a route is.
    """

    def __init__(self, out_width: int, device: torch.device, *, once: bool) -> None:
        super().__init__()
        self.once = once
        self.size = 0
        self._values = torch.zeros(64, out_width, dtype=torch.float32, device=device)

    @property
    def values(self) -> Tensor:
        """fp32 `[edits, d]`."""
        return self._values[: self.size]

    def append(self, value: Tensor) -> None:
        """Store one more edit's value `[d]`."""
        self.reserve(self.size + 1)
        self._values[self.size] = value.to(self._values)
        self.size += 1

    def reserve(self, edits: int) -> None:
        """Room for this many edits: until it is used up, addresses stay."""
        if edits > len(self._values):
            grown = self._values.new_zeros(max(edits, 2 * len(self._values)), self._values.shape[1])
            grown[: self.size] = self.values
            self._values = grown

    def reset(self) -> None:
        """Back to no edits; a view keeps the rows that it reads."""
        if self._parted():
            self._values = torch.zeros_like(self._values)
        self.size = 0

    def read_(self, out: Tensor, x: Tensor, route: Tensor, first: Tensor) -> None:
        """Put the values of the edits in `route` in the place of those rows of `out` `[tokens, d]`."""
        if self.size:
            routed = (route >= 0) & first if self.once else route >= 0
            chosen = self._values.index_select(0, route.clamp(min=0))
            torch.where(routed[:, None], chosen.to(out.dtype), out, out=out)

    def norms(self) -> dict[str, float]:
        norms = self.values.norm(dim=1)
        return {"norm": float(norms.norm()), "largest_edit": float(norms.max()), "bytes": self.values.nbytes}

    def state(self) -> dict[str, Tensor]:
        return {"memory.values": self.values.clone()}
