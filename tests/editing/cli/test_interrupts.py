"""Ctrl-C from the first moment on: while modules are imported, where Python drops it, and where others catch it."""

import signal
import subprocess
import sys
import time

import pytest

from corrigenda.editing.cli import interrupts


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    """A shell starts background jobs with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupted:
    """Interrupts when it is let go of, where an exception goes nowhere."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def test_what_a_finalizer_drops_is_raised_again():
    before = sys.unraisablehook
    with pytest.raises(KeyboardInterrupt), interrupts.heeded():
        dropped = Interrupted()
        del dropped
        time.sleep(10)
    assert sys.unraisablehook is before and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_others_catch_is_known():
    with interrupts.heeded():
        interrupts.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    with interrupts.heeded():
        interrupts.check()


def test_a_job_that_ignores_it_goes_on():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts.heeded():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize(
    "module", ["corrigenda.editing.cli.commands", "typer", "torch", "corrigenda.editing.model.edited_model"]
)
def test_at_every_import_it_is_one_line(module, tmp_path):
    program = f"""
import runpy, signal, sys

class Finder:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder())
sys.argv = ["corrigenda", "eval", "--model", "none", "--edits-dir", {str(tmp_path)!r}, "--edits", {__file__!r}]
runpy.run_module("corrigenda.editing.cli", run_name="__main__")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stderr.strip()) == (130, "Stopped."), ended.stderr
