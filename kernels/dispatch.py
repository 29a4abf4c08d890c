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

from . import reference

logger = logging.getLogger(__name__)

CHOICES = ("auto", "reference", "native", "triton")


class Row(NamedTuple):
    """One backend of one op. `supports(*arguments)` returns True, or the reason why this backend declines."""

    backend: str
    function: Callable | None  # None: not in this installation, and `supports` says why
    supports: Callable[..., bool | str]


class State(NamedTuple):
    """One line of `report`: `reason` says why a backend is not live, and is empty where it is."""

    op: str
    backend: str
    live: bool
    reason: str


NATIVE = Row("native", None, lambda *arguments: "no C++ or CUDA kernel is built in this version")
TRITON = Row("triton", None, lambda *arguments: "no Triton kernel is written in this version")


def _reference(function):
    return Row("reference", function, lambda *arguments: True)


# In order of preference: the first row that accepts the arguments runs.
TABLE = {
    "topk_mask": (NATIVE, TRITON, _reference(reference.topk_mask)),
    "mask_overlap": (NATIVE, TRITON, _reference(reference.mask_overlap)),
    "token_overlap": (NATIVE, TRITON, _reference(reference.token_overlap)),
    "masked_linear": (NATIVE, TRITON, _reference(reference.masked_linear)),
    "masked_linear_": (NATIVE, TRITON, _reference(reference.masked_linear_)),
    "masked_linear_backward": (NATIVE, TRITON, _reference(reference.masked_linear_backward)),
    "associative_read": (NATIVE, TRITON, _reference(reference.associative_read)),
    "associative_read_": (NATIVE, TRITON, _reference(reference.associative_read_)),
    "associative_read_backward": (NATIVE, TRITON, _reference(reference.associative_read_backward)),
    "ties_merge": (NATIVE, TRITON, _reference(reference.ties_merge)),
}


def _checked(choice, source):
    if choice not in CHOICES:
        raise ValueError(f"{source} must be one of {', '.join(CHOICES)}, not {choice!r}")
    return choice


_choice = _checked(os.environ.get("CORRIGENDA_BACKEND", "auto"), "CORRIGENDA_BACKEND")


@contextlib.contextmanager
def use(backend):
    """Run every op of the block on `backend`; "auto" restores the order of the table.

    The choice holds for the whole process, as autograd runs backward ops on threads of its own.
    """
    global _choice
    before, _choice = _choice, _checked(backend, "the backend")
    try:
        yield
    finally:
        _choice = before


def run(op, *arguments):
    """Run `op` on the first backend that the choice allows and that accepts the arguments."""
    for row in TABLE[op]:
        if _choice in ("auto", row.backend):
            verdict = row.supports(*arguments)
            if verdict is True:
                return row.function(*arguments)
            _log_once(op, row.backend, verdict)
    raise RuntimeError(f"{op} cannot run on backend {_choice!r}: {verdict}")


@functools.cache
def _log_once(op, backend, reason):
    logger.debug("%s: %s declines: %s", op, backend, reason)


def impls(op):
    """{backend: function} of the live backends of `op`, in order: what tests compare and benchmarks time."""
    return {row.backend: row.function for row in TABLE[op] if row.function is not None}


def report():
    """One `State(op, backend, live, reason)` per op and backend, in the order in which they are tried."""
    states = []
    for op, rows in TABLE.items():
        for row in rows:
            live = row.function is not None
            states.append(State(op, row.backend, live, "" if live else row.supports()))
    return states
