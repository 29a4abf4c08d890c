"""The edited down-projection: the base module, and a hook that adds to its output what a memory says."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from ..memories.memory import Reader, RowReader, SpreadMemory
from ..methods.record import LARGEST
from ..profiling import scope
from ..routers.context import RoutingContext


class Site:
    """A place in a model where a memory acts; compiled code knows it by its name.

    `memory` may be exchanged, and may grow: the op below finds it anew in every pass. What is captured in a CUDA graph
    keeps the addresses that the memory's and the context's buffers had. place: which part of a memory that acts at
    several places acts here; "" where it acts here alone. whole: makes what comes in `[..., D]`, of a model in parts.
    """

    def __init__(
        self,
        name: str,
        memory: Reader,
        context: RoutingContext,
        place: str = "",
        whole: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.name = name
        self.memory = memory
        self.place = place
        self.context = context
        self.whole = whole
        _sites[name] = self

    def add_(self, out: Tensor, x: Tensor) -> None:
        """Add the memory's residual of `x` `[..., D]` to `out` `[..., d]`, in place, on the tokens that are routed."""
        if not self.context.active:
            return
        if self.whole is not None:
            x = self.whole(x)
        tokens = x.reshape(-1, x.shape[-1])
        count = len(tokens)
        with scope("edit: gather"):
            route = self.context.token_routes(count)
        rows = out.view(-1, out.shape[-1])
        before = rows.clone()
        reader = cast(SpreadMemory, self.memory).part(self.place) if self.place else self.memory
        with scope("edit: residual"):
            reader.read_(rows, tokens, route, self.context.first[:count])
            touched = route >= 0
            if self.context.tells_rows:
                place, row = self.context.told_rows(count)
                cast(RowReader, reader).read_rows_(rows, place, row)
                touched |= place >= 0
        kept = bounded_(rows, before)
        self.context.stopped.index_add_(0, self.context.slot[:count], (touched & ~kept).int())


def bounded_(rows: Tensor, before: Tensor) -> Tensor:
    """Put rows `[tokens, d]` back to what they were `before` where more than `LARGEST`, or no number, was added.

    bool `[tokens]`: which rows were kept. Attention multiplies the values of other sequences in the pass by zero, and
    zero times infinity is no number: such a row would spoil them all. The host does not wait for any of this.
    """
    added = (rows - before).abs_().amax(-1)  # NaN, where any is
    kept = added <= LARGEST
    torch.where(kept[:, None], rows, before, out=rows)
    return kept


_sites: weakref.WeakValueDictionary[str, Site] = weakref.WeakValueDictionary()
_numbers = itertools.count()

_library = torch.library.Library("corrigenda", "FRAGMENT")
_library.define("edited_(Tensor(a!) out, Tensor x, str site) -> ()")


@torch.library.impl(_library, "edited_", "CompositeExplicitAutograd")
def _edited_(out: Tensor, x: Tensor, site: str) -> None:
    _sites[site].add_(out, x)


@torch.library.register_fake("corrigenda::edited_", lib=_library)
def _(out: Tensor, x: Tensor, site: str) -> None:
    return None


def edited_(out: Tensor, x: Tensor, site: str) -> None:
    """Add to `out` `[..., d]`, in place, what the memory at a site says of `x` `[..., D]`; opaque to compilers.

    Rows without a route are never written, so they keep the base layer's bits.
    """
    torch.ops.corrigenda.edited_(out, x, site)


class EditedOutput:
    """A forward hook of a linear map: adds the memory's residual to its output, on tokens routed to an edit.

    A hook and not a module in the place of the map: parameters keep their names, and whatever a library has made of
    the map (LoRA, quantised weights, hooks that bring weights from elsewhere, parts in other processes) computes the
    output first, unseen.
    """

    def __init__(
        self,
        memory: Reader,
        context: RoutingContext,
        place: str = "",
        whole: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.site = Site(f"layer {next(_numbers)}", memory, context, place, whole)

    @property
    def memory(self) -> Reader:
        return self.site.memory

    @memory.setter
    def memory(self, memory: Reader) -> None:
        self.site.memory = memory

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        # A compiled pass may be run again when the context is active; any other is left alone, with its gradients.
        if self.site.context.active or torch.compiler.is_compiling():
            edited_(out, args[0], self.site.name)
        return out
