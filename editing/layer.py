"""The patched down-projection: the base module and, beside it, a residual memory."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from .context import RoutingContext


class Memory(Protocol):
    """What a layer asks of a memory: to add to `out` `[tokens, d]` what the routed edits say of `x` `[tokens, D]`."""

    def read_(self, out: Tensor, x: Tensor, route: Tensor, first: Tensor) -> None: ...


class EditedLinear(nn.Module):
    """`base(x)`, plus the memory's residual on the tokens that the context routes to an edit.

    Rows without a route are never written, so they carry the base module's bits. `weight` and the widths stay visible
    for code that inspects linear layers.
    """

    def __init__(self, base: nn.Module, memory: Memory, context: RoutingContext) -> None:
        super().__init__()
        self.base = base
        self.memory = memory
        self.context = context

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.base, "bias", None)

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features

    def forward(self, x: Tensor) -> Tensor:
        out = self.base(x)
        if self.context.active:
            tokens = x.reshape(-1, x.shape[-1])
            route = self.context.token_routes(len(tokens))
            self.memory.read_(out.view(-1, out.shape[-1]), tokens, route, self.context.first[: len(tokens)])
        return out
