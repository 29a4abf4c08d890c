"""Ctrl-C from the first moment on: while modules are imported, where Python drops it, and where others catch it."""

import signal
import subprocess
import sys
import time

import pytest

from corrigenda.editing.cli import interrupts

RAISED = "signal.raise_signal(signal.SIGINT)"


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


def interrupted(folder, module, raised):
    """The exit status of a command, and what it said, where a line is executed at the import of a module."""
    program = f"""
import runpy, signal, sys

class Finder:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            {raised}

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder())
sys.argv = ["corrigenda", "eval", "--model", "none", "--edits-dir", {str(folder)!r}, "--edits", {__file__!r}]
runpy.run_module("corrigenda.editing.cli", run_name="__main__")
"""
    (folder / "interrupted.py").write_text(program, encoding="utf-8")
    command = [sys.executable, "-m", "interrupted"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    return ended.returncode, ended.stderr.strip()


PLACES = ["typer", "torch", "corrigenda.editing.cli.commands", "corrigenda.editing.model.edited_model"]


@pytest.mark.parametrize("module", PLACES)
@pytest.mark.parametrize("raised", [RAISED, f"exec({RAISED!r})"], ids=["alone", "below exec"])
def test_at_every_import_it_is_one_line_and_one_status(module, raised, tmp_path):
    assert interrupted(tmp_path, module, raised) == (130, "Stopped.")


@pytest.mark.parametrize("module", ["torch", "corrigenda.editing.model.edited_model"])
def test_what_fails_after_it_was_caught_is_its_doing(module, tmp_path):
    """As numpy does, of which torch's import catches the interrupt and asks on."""
    caught = f"try:\n    {RAISED}\nexcept KeyboardInterrupt:\n    raise RecursionError"
    assert interrupted(tmp_path, module, f"exec({caught!r})") == (130, "Stopped.")
