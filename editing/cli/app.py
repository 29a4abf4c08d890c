"""The program: what all its commands share. Each command imports what it works with when it runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from ...kernels.errors import BackendError
from ..errors import CorrigendaError
from ..shown import shown
from . import interrupts

# Without markup: what is printed may hold a user's paths, prompts and ids, and brackets in these mean nothing.
output = Console(highlight=False, markup=False)
errors = Console(stderr=True, highlight=False, markup=False)


class _Commands(TyperGroup):
    """The commands; an error that a user is meant to read is one line, and never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (CorrigendaError, BackendError) as error:
            sentence = str(error).rstrip(".") + "." if isinstance(error, BackendError) else error
            fail(str(sentence))
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            raise stopped() from None

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().make_context(*args, **kwargs)
        except KeyboardInterrupt:
            raise stopped() from None


def stopped() -> typer.Exit:
    """Say that Ctrl-C ended a command; what to raise."""
    errors.print("Stopped.", style="yellow")
    return typer.Exit(interrupts.ended())


app = typer.Typer(
    cls=_Commands,
    help="Write corrections into a frozen language model, in a stream, and ask it about them.",
    epilog="`corrigenda demo` shows it all in a few minutes; `corrigenda doctor` says what this machine has.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def counted(count: int, noun: str) -> str:
    """A number of things: "1 edit", "2 edits"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def say(text: str, style: str = "", console: Console = output) -> None:
    """Print a line, whatever is in it."""
    console.print(Text(shown(text), style), soft_wrap=True)


def fail(sentence: str) -> None:
    """Say what went wrong."""
    errors.print(Text.assemble(("Error:", "red"), f" {shown(sentence)}"), soft_wrap=True)


def tell(notices: Sequence[str], rest: str = "", most: int = 10) -> None:
    """Say what happened beside what was asked for, and in the end what shows the rest."""
    for notice in notices[:most]:
        say(notice, "yellow")
    if len(notices) > most:
        say(f"... and {len(notices) - most} more of the kind: {rest}.", "yellow")


def use_threads(count: int | None) -> None:
    """Let torch compute on `count` CPU threads; None leaves its own choice. Raises for a backend that is misspelt."""
    from ...kernels import dispatch

    dispatch.chosen()  # where no edit is asked for, no op runs that would say so
    if count is not None:
        import torch

        if count < 1:
            raise CorrigendaError(f"The number of threads must be at least 1, not {count}.")

        torch.set_num_threads(count)


def main() -> None:
    """The program `corrigenda`."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of other libraries cut through our own
    try:
        with interrupts.heeded():
            app(prog_name="corrigenda")
    except KeyboardInterrupt:  # before a command was made of the arguments, or what a failure was taken for
        raise SystemExit(stopped().exit_code) from None
