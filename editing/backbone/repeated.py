"""A step that is taken again and again: on a GPU captured once in a CUDA graph, and from then on one launch."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator

import torch

from .decoder import Decoder

_EAGER_CALLS = 2
"""Before a step is captured: a capture costs about as much, and most *associative* edits are done by then."""

_refused: set[type] = set()
"""Classes of models whose step could not be captured once; it is not tried again."""
_resources: dict[torch.device, tuple[object, torch.cuda.Stream]] = {}
"""The memory pool and the stream of a device's captures. One pool: what a graph makes within is never read after it."""
_switched_off = False


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Within: every step launches its kernels one by one."""
    global _switched_off
    before, _switched_off = _switched_off, True
    try:
        yield
    finally:
        _switched_off = before


def can_capture(decoder: Decoder, layer: int) -> bool:
    """Whether a step of the layers above `layer` can be captured.

    The model is whole on one GPU and run part by part, and no hook brings in weights from elsewhere.
    """
    model = decoder.model
    if _switched_off or decoder.parts is not None or type(model) in _refused or not torch.cuda.is_available():
        return False
    device = decoder.device(layer)
    there = device.type == "cuda" and all(part.device == device for part in model.parameters())
    return there and not any(hasattr(part, "_hf_hook") for part in model.modules()) and decoder.is_plain(layer)


class Repeated:
    """Calls `step`, which reads and writes tensors that stay where they are, and waits for no value of theirs.

    Eager calls run on the stream of the later capture: cuBLAS's workspace for it is then made there, not in the graph.
    The capture is this thread's alone: others may go on using the GPU. Where it fails, this and later steps stay eager.
    """

    def __init__(self, step: Callable[[], None], decoder: Decoder, layer: int) -> None:
        self._step = step
        self._kind = type(decoder.model)
        self._device = decoder.device(layer)
        self._captures = can_capture(decoder, layer)
        self._eager_left = _EAGER_CALLS
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if not self._captures:
            self._step()
            return
        if self._graph is None and not self._eager_left:
            self._graph = self._captured()
            self._captures = self._graph is not None
        if self._graph is not None:
            self._graph.replay()
            return
        self._eager_left -= 1
        with _beside(self._device):
            self._step()

    def _captured(self) -> torch.cuda.CUDAGraph | None:
        pool, _ = _resources_of(self._device)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        # A collection within could free what was captured before; `torch.cuda.graph` would collect and give back all
        # cached memory here, for each edit anew.
        collects = gc.isenabled()
        gc.disable()
        try:
            with _beside(self._device):
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                try:
                    self._step()
                finally:
                    graph.capture_end()
        except RuntimeError:
            _refused.add(self._kind)
            return None
        finally:
            if collects:
                gc.enable()
        return graph


@contextlib.contextmanager
def _beside(device: torch.device) -> Iterator[None]:
    """Within: work goes to the stream of captures, after what was launched so far; what comes later waits for it."""
    _, stream = _resources_of(device)
    current = torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


def _resources_of(device: torch.device) -> tuple[object, torch.cuda.Stream]:
    if device not in _resources:
        _resources[device] = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)
    return _resources[device]
