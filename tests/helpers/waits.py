"""Counts what makes the host wait for a device, on any device: CUDA alone would tell, and only by being slow."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_SIZED_BY_VALUES = {_aten.nonzero, _aten.masked_select, _aten._unique2, _aten.unique_dim, _aten._local_scalar_dense}
_INDEXED = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}


class Waits(TorchDispatchMode):
    """Within: `found` names each read of a device's values by the host, and each copy to or from the device.

    A copy from unpinned memory waits too.
    """

    def __init__(self, device):
        super().__init__()
        self.device, self.found = device, []

    def _there(self, value):
        return isinstance(value, torch.Tensor) and value.device.type == self.device

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out, op = function(*args, **(kwargs or {})), function.overloadpacket
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        if op in _SIZED_BY_VALUES:
            waits = self._there(args[0])
        elif op in _INDEXED:
            waits = any(self._there(i) and i.dtype == torch.bool for i in args[1])
        elif op is _aten.repeat_interleave and function is _aten.repeat_interleave.Tensor:
            waits = self._there(args[0]) and (kwargs or {}).get("output_size") is None
        elif op in (_aten._to_copy, _aten.copy_):
            ends = [*tensors, out] if isinstance(out, torch.Tensor) else tensors
            waits = len({value.device.type for value in ends}) > 1
        else:
            waits = False
        if waits:
            self.found.append(str(function))
        return out
