"""Whether the Triton kernels can run, and how they are reached: each op's are imported when it is first called."""

import functools
import importlib
import importlib.util
import os

import torch

# Triton reads the variable itself when a kernel is decorated; with it, kernels run on CPU tensors, slowly.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
MINIMUM_CAPABILITY = (8, 0)
MAXIMUM_WIDTH = 16384  # of a row that one program selects from: more does not fit its registers


@functools.cache
def absent(device):
    """Why Triton kernels cannot run on tensors on `device` ("cpu", "cuda", ...), or ""."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; `pip install triton` adds it"
    if INTERPRETED:
        return "" if device == "cpu" else "TRITON_INTERPRET=1 keeps Triton on CPU tensors; unset it"
    if device != "cuda":
        return f"Triton has no kernels for {device} tensors; TRITON_INTERPRET=1 interprets them on a CPU"
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < MINIMUM_CAPABILITY:
        major, minor = torch.cuda.get_device_capability()
        return f"this GPU is of compute capability {major}.{minor}; the kernels need 8.0"
    return ""


def call(op):
    """The Triton form of `op`, from the file that bears its name."""
    stem = op.removesuffix("_").removesuffix("_backward")

    def run(*arguments):
        function = getattr(importlib.import_module(f".{stem}", __package__), op)
        device = arguments[0].device
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):  # Triton launches on the current device
                return function(*arguments)
        return function(*arguments)

    return run


def too_wide(x, *others):
    """Why a selection does not take x, or "" if it does."""
    return "" if x.shape[1] <= MAXIMUM_WIDTH else f"its rows hold {MAXIMUM_WIDTH} features at most, not {x.shape[1]}"
