"""Ctrl-C is heeded wherever it comes: Python drops what a finalizer raises, and libraries catch what is not theirs."""

from __future__ import annotations

import _thread
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import make_dataclass
from types import FrameType
from typing import Any

STOPPED = 130
"""The exit status of a stream that Ctrl-C ended, and of a command (`ended`)."""

_LATER = 0.01
"""Seconds after which an interrupt that was dropped is raised again: what dropped it has ended by then."""

_came = threading.Event()


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """Within, on the main thread: a Ctrl-C whose exception is dropped is raised again, and `check` knows of any.

    What fails within after one is taken for its doing: a library that catches it half way through its import fails at
    something else later.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # a shell's background jobs
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
    except Exception:
        check()
        raise
    finally:
        sys.unraisablehook = report
        signal.signal(signal.SIGINT, signal.default_int_handler)


def check() -> None:
    """Raise KeyboardInterrupt where one came since `heeded` began, and somebody caught it: while modules are imported,
    code that tries what a machine has takes any exception for an answer."""
    if _came.is_set():
        raise KeyboardInterrupt


def ended() -> int:
    """The exit status of a command that Ctrl-C ended, to be asked for once it was caught.

    Where it was raised below `exec` of a text, as every dataclass is made by one, Python takes it for uncaught and
    ends by the signal instead of the status, unless another text was executed since: that of a dataclass is.
    """
    make_dataclass("Executed", ())
    return STOPPED
