"""Which implementation of an op runs: per op a table of backends, in order, each able to say why it declines.

`CORRIGENDA_BACKEND` is read once, at import; `use` overrides it in a block. With `auto` a backend that
declines is passed over; a backend asked for by name runs, or the call raises and says why not.
"""

import contextlib
import functools
import logging
import os
from collections.abc import Callable
from typing import NamedTuple

import torch

from . import native, reference, triton_backend
from .errors import BackendError

logger = logging.getLogger(__name__)

CHOICES = ("auto", "reference", "native", "triton")


class Row(NamedTuple):
    """One backend of one op."""

    backend: str
    function: Callable
    absent: Callable[[str], str]  # why the backend cannot run on a type of device ("cpu", "cuda"), or ""
    declines: Callable[..., str] = lambda *arguments: ""  # why it does not take these arguments, or ""
    automatic: Callable[..., bool] = lambda *arguments: True  # whether "auto" may choose it for these arguments


class State(NamedTuple):
    """One line of `report`: `reason` says why a backend is not live, and is empty where it is."""

    op: str
    backend: str
    live: bool
    reason: str


def _double(*arguments):
    doubles = any(isinstance(value, torch.Tensor) and value.dtype == torch.float64 for value in arguments)
    return "float64 is for the reference backend" if doubles else ""


def _row(backend, op):
    if backend == "native":
        absent, pays = functools.partial(native.absent, op=op), functools.partial(native.pays, op)
        return Row(backend, native.call(op), absent, _double, pays)
    if backend == "triton":

        def declines(*arguments):
            return _double(*arguments) or triton_backend.declines(op, *arguments)

        def pays(*arguments):
            return not triton_backend.INTERPRETED

        return Row(backend, triton_backend.call(op), triton_backend.absent, declines, pays)
    return Row(backend, getattr(reference, op), lambda device: "")


# In order of preference: the first backend that accepts the arguments runs.
ORDER = {
    "topk_mask": ("native", "triton", "reference"),
    "mask_overlap": ("native", "triton", "reference"),
    "mask_route": ("native", "triton", "reference"),
    "token_overlap": ("native", "triton", "reference"),
    "masked_linear": ("native", "triton", "reference"),
    "masked_linear_": ("native", "triton", "reference"),
    "masked_linear_backward": ("native", "triton", "reference"),
    "associative_read": ("native", "triton", "reference"),
    "associative_read_": ("native", "triton", "reference"),
    "associative_read_backward": ("native", "triton", "reference"),
    "ties_merge": ("native", "triton", "reference"),
    "masked_sgd_": ("native", "triton", "reference"),
    "delta_linear": ("native", "triton", "reference"),
    "label_losses": ("native", "reference"),
}

TABLE = {op: tuple(_row(backend, op) for backend in backends) for op, backends in ORDER.items()}


_choice = os.environ.get("CORRIGENDA_BACKEND", "auto")  # checked when an op runs: an import never fails


def chosen():
    """What is asked for, one of CHOICES; raises BackendError where `CORRIGENDA_BACKEND` names none of them."""
    if _choice not in CHOICES:
        raise BackendError(f"CORRIGENDA_BACKEND must be one of {', '.join(CHOICES)}, not {_choice!r}")
    return _choice


@contextlib.contextmanager
def use(backend):
    """Run every op of the block on `backend`; "auto" restores the order of the table.

    The choice holds for the whole process, as autograd runs backward ops on threads of its own.
    """
    global _choice
    if backend not in CHOICES:
        raise ValueError(f"the backend must be one of {', '.join(CHOICES)}, not {backend!r}")
    before, _choice = _choice, backend
    try:
        yield
    finally:
        _choice = before


def run(op, *arguments):
    """Run `op` on the first backend that the choice allows and that accepts the arguments."""
    choice, device = chosen(), arguments[0].device.type
    reason = "it has no such kernels"
    for row in TABLE[op]:
        if choice == row.backend or (choice == "auto" and row.automatic(*arguments)):
            reason = row.absent(device) or row.declines(*arguments)
            if not reason:
                return row.function(*arguments)
            _log_once(op, row.backend, reason)
    raise BackendError(f"{op} cannot run on backend {choice!r}: {reason}")


@functools.cache
def _log_once(op, backend, reason):
    logger.debug("%s: %s declines: %s", op, backend, reason)


def impls(op, device="cpu"):
    """{backend: function} of the live backends of `op`, in order: what tests compare and benchmarks time."""
    return {row.backend: row.function for row in TABLE[op] if not row.absent(device)}


def report(device="cpu"):
    """One `State` per op and backend for tensors on a type of device, in the order in which they are tried."""
    return [
        State(op, row.backend, not reason, reason)
        for op, rows in TABLE.items()
        for row in rows
        for reason in [row.absent(device)]
    ]
