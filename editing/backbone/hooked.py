"""Modules whose outputs are seen or changed for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def hooked(
    modules: Mapping[str, nn.Module], function: Callable[[str, Tensor, Tensor], Tensor | None]
) -> Iterator[None]:
    """Within: `function(name, input, output)` after every pass of a module; what it gives takes the output's place."""
    handles = [
        module.register_forward_hook(lambda _module, args, out, name=name: function(name, args[0], out))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
