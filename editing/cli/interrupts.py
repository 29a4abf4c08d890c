"""Ctrl-C is heeded wherever it comes: Python drops what a finalizer raises, and libraries catch what is not theirs."""

from __future__ import annotations

import _thread
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

STOPPED = 130
"""The exit status of a command that Ctrl-C ended."""

_LATER = 0.01
"""Seconds after which an interrupt that was dropped is raised again: what dropped it has ended by then."""

_came = threading.Event()


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """Within, on the main thread: a Ctrl-C whose exception is dropped is raised again, and `check` knows of any."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # a background job of a shell ignores it
        yield
        return
    report = sys.unraisablehook

    def note(_signal: int, _frame: FrameType | None) -> None:
        _came.set()
        raise KeyboardInterrupt

    def raise_again(dropped: Any) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            again = threading.Timer(_LATER, _thread.interrupt_main)  # here it would be dropped once more
            again.daemon = True
            again.start()
        else:
            report(dropped)

    _came.clear()
    signal.signal(signal.SIGINT, note)
    sys.unraisablehook = raise_again
    try:
        yield
    finally:
        sys.unraisablehook = report
        signal.signal(signal.SIGINT, signal.default_int_handler)


def check() -> None:
    """Raise KeyboardInterrupt where one came since `heeded` began, and somebody caught it: while modules are imported,
    code that tries what a machine has takes any exception for an answer."""
    if _came.is_set():
        raise KeyboardInterrupt
