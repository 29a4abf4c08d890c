"""A stream of edits on the screen: a progress bar, and an end at a whole batch when it is interrupted."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column

from ..edits.edit import Edit
from ..errors import CorrigendaError
from ..model.answers import Progress
from ..model.edited_model import EditedModel
from ..scores.evaluate import Evaluator
from ..shown import one_line, shown
from . import interrupts


class StoppedError(Exception):
    """The user asked a stream to end, and it did so at a whole batch."""


@dataclass
class Stream:
    """How a stream ended: how many edits were solved, in how many seconds, and what ended it early, if anything.

    `passed` counts those too that were recorded before or declined, which `left_out` counts. `unsolved` and `failing`
    are the ids of edits that do not hold: those that are not in the memory, and those that are all the same.
    """

    done: int = 0
    passed: int = 0
    left_out: int = 0
    seconds: float = 0.0
    unsolved: list[str] = field(default_factory=list)
    failing: list[str] = field(default_factory=list)
    ended_by: CorrigendaError | StoppedError | None = None

    @property
    def held(self) -> int:
        """How many of the edits that were solved hold."""
        return self.done - len(self.unsolved) - len(self.failing)

    @property
    def inside(self) -> int:
        """How many of the edits that were solved are in the memory."""
        return self.done - len(self.unsolved)

    def counts(self) -> dict[str, Any]:
        """How many hold, and the ids of those that do not, as JSON."""
        return {"held": self.held, "unsolved": self.unsolved, "failing": self.failing}

    @property
    def rate(self) -> float:
        """Edits a second."""
        return self.done / self.seconds if self.seconds else 0.0


def write_stream(
    edited: EditedModel,
    edits: Sequence[Edit],
    console: Console,
    score_each: Evaluator | None = None,
    on_conflict: str = "supersede",
    **options: Any,
) -> Stream:
    """Write edits under a progress bar.

    An edit that cannot be taken and a first Ctrl-C end the stream and are handed back, not raised: what was written
    before is whole. A second Ctrl-C is raised, in the middle of a batch. `options` are those of `EditedModel.edit`.
    """
    stream = Stream()
    bar = Bar(
        BarColumn(16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.2f} edits/s  loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(compact=True),
        TextColumn(
            "{task.fields[current]}", style="dim", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        ),
        console=console,
        expand=True,
    )
    with bar, _interruptible(console) as interrupted:
        task = bar.add_task("", total=len(edits), rate=0.0, loss=0.0, current="preparing")

        def advance(progress: Progress) -> None:
            stream.done, stream.passed, stream.seconds = progress.done, progress.passed, progress.seconds
            stream.left_out += len(progress.declined)
            stream.unsolved += [edit.id for edit in progress.unsolved]
            stream.failing += [edit.id for edit in progress.failing]
            last = [*progress.edits, *(declined.edit for declined in progress.declined)][-1:]
            current = "" if progress.passed == len(edits) else escape(one_line("".join(edit.prompt for edit in last)))
            bar.update(task, completed=progress.passed, rate=stream.rate, loss=progress.loss, current=current)
            if interrupted.is_set():
                raise StoppedError

        def ask(edit: Edit, rival: Edit) -> str:
            bar.stop()
            console.print(
                f'"{one_line(edit.prompt)}" is stored with the target "{one_line(rival.target)}" ({shown(rival.id)}).',
                soft_wrap=True,
            )
            try:
                replace = typer.confirm(f'Replace it by "{one_line(edit.target)}"?')
            except typer.Abort:
                raise CorrigendaError(
                    f'No answer came for "{one_line(edit.prompt)}", and its batch was not written: with --on-conflict '
                    "supersede or keep nothing is asked."
                ) from None
            bar.start()
            return "supersede" if replace else "keep"

        policy = ask if on_conflict == "ask" else on_conflict
        try:
            edited.edit(edits, on_progress=advance, score_each=score_each, on_conflict=policy, **options)
            if interrupted.is_set():  # where all was written before, there was no batch to stop after
                raise StoppedError
        except (CorrigendaError, StoppedError) as error:
            stream.ended_by = error
        except torch.OutOfMemoryError:
            stream.ended_by = CorrigendaError(
                f"The device's memory is full after {stream.done} edits: use a smaller --batch-size."
            )
    return stream


@contextlib.contextmanager
def _interruptible(console: Console) -> Iterator[threading.Event]:
    """Within: the first Ctrl-C sets the event, so that the batch in work is finished; the second one interrupts."""
    interrupts.check()
    interrupted = threading.Event()

    def note(_signal: int, _frame: FrameType | None) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()
        console.print("Stopping after this batch; Ctrl-C again stops at once; what was written stays.", style="yellow")

    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
