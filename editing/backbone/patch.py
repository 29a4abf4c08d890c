"""What is put on a loaded model, on this instance alone, and comes off again without a trace."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_BESIDE = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")
"""Where a module keeps hooks by their number, and what it notes of them beside."""


class Patch:
    """Hooks on modules and attributes in the place of their classes' own.

    Parameters, buffers and names stay the model's, so `state_dict` and `save_pretrained` know nothing of a patch. A
    copy, by `copy.deepcopy` or through a file, is of the model without it: functions put on an instance would go on
    calling the instance that they were made for.
    """

    def __init__(self) -> None:
        self._modules: dict[int, _Patched] = {}

    def hook(self, module: nn.Module, function: Callable[..., Any], *, first: bool = False) -> None:
        """Call `function(module, args, output)` after every forward of a module; `first`: before hooks it has."""
        _forget_compiled()
        self._of(module).handles.append(module.register_forward_hook(function, prepend=first))

    def pre_hook(self, module: nn.Module, function: Callable[..., Any]) -> None:
        """Call `function(module, args)` before every forward of a module."""
        _forget_compiled()
        self._of(module).handles.append(module.register_forward_pre_hook(function))

    def replace(self, module: nn.Module, name: str, value: Any) -> None:
        """Give this instance an attribute, whatever it or its class has under that name."""
        self._of(module).set(name, value)

    def hooks(self, module: nn.Module) -> bool:
        """Whether the module, or one inside it, still has a hook of this patch."""
        return any(
            handle.id in part._forward_hooks
            for part in module.modules()
            if id(part) in self._modules
            for handle in self._modules[id(part)].handles
        )

    def remove(self) -> None:
        """Take everything off."""
        _forget_compiled()
        for patched in self._modules.values():
            patched.remove()
        self._modules.clear()

    def _of(self, module: nn.Module) -> _Patched:
        if id(module) not in self._modules:
            self._modules[id(module)] = _Patched(module)
        return self._modules[id(module)]


def _forget_compiled() -> None:
    """Have compiled code compiled anew: what ran before a hook came goes on without it, and torch does not look."""
    if "torch._dynamo" in sys.modules:  # else nothing was compiled, and asking would import it
        torch.compiler.reset()


class _Patched:
    """One module of a patch: its hooks, and which of its attributes were there before."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.handles: list[RemovableHandle] = []
        self._before: dict[str, tuple[Any, ...]] = {}
        # What copies of an object hold, in memory or in a file, is asked of the instance.
        self.set("__getstate__", self.state)

    def set(self, name: str, value: Any) -> None:
        own = self.module.__dict__
        self._before.setdefault(name, (own[name],) if name in own else ())
        own[name] = value

    def state(self) -> dict[str, Any]:
        """The module's attributes without the patch."""
        state = self._without(dict(self.module.__dict__))
        ours = {handle.id for handle in self.handles}
        for name in (*_HOOKS, *_BESIDE):
            kept = [(number, value) for number, value in state[name].items() if number not in ours]
            state[name] = type(state[name])(kept)
        return state

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self._without(self.module.__dict__)

    def _without(self, attributes: dict[str, Any]) -> dict[str, Any]:
        for name, before in self._before.items():
            attributes.pop(name, None)
            if before:
                attributes[name] = before[0]
        return attributes
