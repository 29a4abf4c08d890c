"""Which implementation of an op runs: per op a row of backends, in order, each able to say no in three ways.

It is absent on this device, it declines these arguments, or it does not pay for them. `CORRIGENDA_BACKEND` is read
once, at import; `use` overrides it in a block. With `auto` a backend that says no is passed over; one asked for by
name runs whether it pays or not, and where it is absent or declines the call raises and says why.
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


def _takes_all(*arguments):
    return ""


def _pays_always(*arguments):
    return True


class Row(NamedTuple):
    """One backend of one op, and the three ways in which it may say no."""

    backend: str
    function: Callable
    absent: Callable[[str], str]  # why it cannot run on a type of device ("cpu", "cuda"), or ""
    declines: Callable[..., str] = _takes_all  # why it does not take these arguments, or ""
    pays: Callable[..., bool] = _pays_always  # whether it is worth running on these arguments where nobody names it


class State(NamedTuple):
    """One line of `report`: `reason` says why a backend is not live, and is empty where it is."""

    op: str
    backend: str
    live: bool
    reason: str


def _double(*arguments):
    doubles = any(isinstance(value, torch.Tensor) and value.dtype == torch.float64 for value in arguments)
    return "float64 is for the reference backend" if doubles else ""


def _native(op, devices=("cpu", "cuda"), pays=_pays_always):
    def absent(device):
        here = "" if device in devices else f"it has no kernels for {device} tensors"
        return native.absent(device) or here or native.lacks(op)

    return Row("native", native.call(op), absent, _double, pays)


def _triton(op, declines=_takes_all):
    return Row(
        "triton",
        triton_backend.call(op),
        triton_backend.absent,
        lambda *arguments: _double(*arguments) or declines(*arguments),
        lambda *arguments: not triton_backend.INTERPRETED,
    )


def _reference(op):
    return Row("reference", getattr(reference, op), lambda device: "")


def _rows(op, triton_declines=_takes_all):
    """The usual backends, in the order in which they are tried."""
    return _native(op), _triton(op, triton_declines), _reference(op)


OPS = (
    "topk_mask",
    "mask_overlap",
    "mask_route",
    "token_overlap",
    "nearest_key",
    "masked_linear",
    "masked_linear_",
    "masked_linear_backward",
    "associative_read",
    "associative_read_",
    "associative_read_backward",
    "adapter_linear_",
    "ties_merge",
    "masked_sgd_",
    "delta_linear",
    "label_losses",
)

# The ops for which a backend is missing, declines more than float64, or does not always pay.
UNUSUAL = {
    "topk_mask": _rows("topk_mask", triton_declines=triton_backend.too_wide),
    "mask_route": _rows("mask_route", triton_declines=triton_backend.too_wide),
    # No kernel for GPUs: torch's own products take one under a millisecond for a dozen labels.
    "label_losses": (
        _native("label_losses", devices=("cpu",), pays=native.label_losses_pays),
        _reference("label_losses"),
    ),
}

TABLE = {op: UNUSUAL.get(op) or _rows(op) for op in OPS}


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
        if choice not in ("auto", row.backend):
            continue
        reason = row.absent(device) or row.declines(*arguments)
        if reason:
            _log_once(op, row.backend, reason)
        elif choice != "auto" or row.pays(*arguments):
            return row.function(*arguments)
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
