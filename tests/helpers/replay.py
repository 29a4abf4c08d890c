"""A CUDA graph on a CPU: records the operations of a step, and runs them again on the same tensors.

What a graph bakes in is baked in here too: numbers of the host, addresses, and which operations there are. So a replay
that equals a fresh call shows that a step depends on nothing else; and an operation that makes the host wait for a
value, which no capture allows, is an error.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from waits import _INDEXED, _SIZED_BY_VALUES


class Recording(TorchDispatchMode):
    """Within: `calls` takes down every operation with its very arguments and results; `before` what they overwrote."""

    def __init__(self):
        super().__init__()
        self.calls, self.before, self._own = [], [], set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        op, kwargs = function.overloadpacket, kwargs or {}
        by_values = op in _INDEXED and any(i is not None and i.dtype == torch.bool for i in args[1])
        if op in _SIZED_BY_VALUES or by_values:
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        for argument, value in zip(function._schema.arguments, args):
            if argument.alias_info is not None and argument.alias_info.is_write and _place(value) not in self._own:
                self.before.append((value.detach(), value.detach().clone()))
        out = function(*args, **kwargs)
        self.calls.append((function, args, kwargs, out))
        given = {_place(value) for value in _tensors([*args, *kwargs.values()])}
        self._own |= {_place(value) for value in _tensors(out)} - given
        return out


class Replayed:
    """In the place of a `torch.cuda.CUDAGraph` of `step`: recording it leaves every tensor as it was."""

    def __init__(self, step):
        with Recording() as recording:
            step()
        self._calls = recording.calls
        with torch.no_grad():
            for tensor, value in reversed(recording.before):
                tensor.copy_(value)

    @torch.no_grad()
    def replay(self):
        for function, args, kwargs, out in self._calls:
            for old, new in zip(_tensors(out), _tensors(function(*args, **kwargs))):
                if _place(old) != _place(new):  # else it is a view, or was written in place
                    old.copy_(new)


def _place(value):
    return value.untyped_storage().data_ptr()


def _tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [part for item in value for part in _tensors(item)] if isinstance(value, list | tuple) else []
