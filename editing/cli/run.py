"""What `corrigenda edit`, `eval` and `generate` do once their inputs are known to be good."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import typer
from rich.console import Console
from rich.text import Text
from torch.distributed import ProcessGroup

from ..edits.edit import Edit
from ..edits.template import Template
from ..model.answers import Answer
from ..model.edited_model import EditedModel
from ..scores.evaluate import Evaluator, Scores
from ..scores.report import scores_json, scores_table, write_json
from ..shown import one_line, shown
from ..store.matching import matched
from . import interrupts
from .app import counted, say, tell
from .panels import AnswerOptions, MachineOptions, ReportOptions, StreamOptions
from .stream import StoppedError, Stream, write_stream

NOT_ALL_HOLD = 3
"""The exit status of a stream that went to its end, where not all of its edits hold."""


class Writing(NamedTuple):
    """A stream that is to be written: into which model, by which name, what, where to, whether it goes on; by whom."""

    edited: EditedModel
    model: str
    edits: Sequence[Edit]
    out: Path
    resumed: bool
    group: ProcessGroup | None = None


def edit(console: Console, job: Writing, options: StreamOptions, report: ReportOptions, source: dict[str, Any]) -> None:
    """Write edits, saved as they come, and score them where asked; what was written before an end too early stays."""
    evaluator = Evaluator(job.edited)
    stream = write_stream(
        job.edited,
        job.edits,
        console,
        evaluator if report.score_each else None,
        store=job.out.resolve(),
        resume=job.resumed,
        on_conflict=options.on_conflict,
        keep_unsolved=options.keep_unsolved,
        author=options.author,
        group=job.group,
    )
    _tell_written(console, job, stream)
    _score_written(console, job, stream, evaluator, report, {"model": job.model, **source})
    _tell_held(console, stream)
    if stream.held < stream.done:
        raise typer.Exit(NOT_ALL_HOLD)


def _tell_written(console: Console, job: Writing, stream: Stream) -> None:
    """Say what was written and what was not; end here with what ended the stream early."""
    store = job.edited.store
    tell([] if store is None else store.notices, f"see `corrigenda log {job.out}` and its --status")
    if job.resumed and stream.passed:
        before = stream.passed - stream.done - stream.left_out
        say(f"{before} of {stream.passed} edits were recorded before.", console=console)
    if stream.ended_by is not None:
        if stream.done:
            ended = f"The stream ended after {stream.done} of {len(job.edits)} edits"
            say(f"{ended}; what was written is saved in {job.out}.", console=console)
            _tell_held(console, stream)
        if isinstance(stream.ended_by, StoppedError):
            raise typer.Exit(interrupts.STOPPED)
        raise stream.ended_by
    took = f"{stream.seconds:.1f} s ({stream.rate:.2f} edits/s)"
    say(f"Wrote {counted(stream.inside, 'edit')} in {took}; saved in {job.out}.", console=console)
    if stream.left_out:
        left_out = f"{stream.left_out} {'was' if stream.left_out == 1 else 'were'} left out"
        say(f"{left_out}: `corrigenda log {job.out} --status declined` has them.", console=console)


def _score_written(
    console: Console,
    job: Writing,
    stream: Stream,
    evaluator: Evaluator,
    report: ReportOptions,
    source: dict[str, Any],
) -> None:
    """Score what was written, as far as asked, on the screen and in a file."""
    immediate = evaluator.immediate_scores()
    if immediate is not None:
        console.print(scores_table(immediate, "Right after each batch"))
    scores = Scores(n=stream.inside, rel=None, gen=None, loc=None, free_rel=None, free_gen=None)
    if report.evaluate:
        scores = score(console, evaluator, job.edited.edits)
        console.print(scores_table(scores, f"After {counted(scores.n, 'edit')}"))
    if report.json is not None:
        result = result_of(job.edited, scores, stream.seconds, "writing", source, immediate)
        write_json(report.json, {**result, **stream.counts()})


def _tell_held(console: Console, stream: Stream) -> None:
    """The line that says how many edits of a stream hold."""
    if stream.done == 0:
        return
    names = [*stream.unsolved, *stream.failing]
    some = ", ".join(shown(name) for name in names[:8]) + (", ..." if len(names) > 8 else "")
    holds = "1 holds" if stream.held == 1 else f"{stream.held or 'none'} hold{'' if stream.held else 's'}"
    say(f"Of {counted(stream.done, 'edit')}, {holds}{f'; not {some}' if names else ''}.", console=console)


def evaluate(
    console: Console, edited: EditedModel, edits: Sequence[Edit], json_path: Path | None, source: dict[str, Any]
) -> None:
    """Score saved edits on `edits`; `source` says what they are, for the result."""
    asked, superseded, missing = matched(edits, edited.store.history)
    for count, what in ((missing, "not in effect"), (superseded, "superseded, and not scored,")):
        if count:
            say(f"{count} of {len(edits)} edits of the file are {what} in {source['edits_dir']}.", console=console)
    start = time.perf_counter()
    scores = score(console, Evaluator(edited), asked)
    seconds = time.perf_counter() - start
    console.print(scores_table(scores, f"{counted(scores.n, 'edit')}, {len(edited.edits)} stored"))
    if json_path is not None:
        write_json(json_path, result_of(edited, scores, seconds, "scoring", {**source, "superseded": superseded}))


def generate(
    console: Console, edited: EditedModel, prompts: Sequence[str], template: Template | None, options: AnswerOptions
) -> None:
    """Answer prompts, on the screen or in a JSON file."""
    with console.status(f"Answering {len(prompts)} prompts"):
        answers = edited.answer(prompts, options.max_new_tokens, template=template)
    if options.json is not None:
        found = [
            {"prompt": prompt, "text": answer.text, **_source(answer, options.provenance)}
            for prompt, answer in zip(prompts, answers)
        ]
        write_json(options.json, found)
        say(f"Wrote {counted(len(found), 'answer')} to {options.json}.", console=console)
        return
    for prompt, answer in zip(prompts, answers):
        line = Text.assemble((one_line(prompt), "bold"), "\n  ", one_line(answer.text))
        source = answer.provenance
        if source.applied:
            line.append(f"  [{shown(source.memory or source.edit.id)}]", "dim")
        nearest = source.memory if source.nearest is None else source.nearest.id
        if options.provenance and nearest is not None:
            compared = f"{source.score:.3f}, needed {source.needed:.3f}, margin {source.margin:+.3f}"
            line.append(f"  {shown(nearest)} {compared}", "dim")
        if options.provenance and source.withdrawn is not None:
            why = edited.store.history.taken_out_as(source.withdrawn)
            line.append(f" to {shown(source.withdrawn)}, {why}", "dim")
        console.print(line, soft_wrap=True)


def _source(answer: Answer, provenance: bool) -> dict[str, Any]:
    return answer.provenance.to_dict() if provenance else {"edit": answer.edit.id if answer.edit else None}


def load(console: Console, model: str, machine: MachineOptions, **options: Any) -> EditedModel:
    """`EditedModel.from_pretrained`, with a sign of life."""
    interrupts.check()  # of what came while torch and transformers were imported
    with console.status(Text(f"Loading {model}")):  # as text: a status reads markup, whatever the console does
        edited = EditedModel.from_pretrained(model, device=machine.device, dtype=machine.dtype, **options)
    interrupts.check()
    return edited


def score(console: Console, evaluator: Evaluator, edits: Sequence[Edit]) -> Scores:
    """All scores of `edits`, with a sign of life."""
    with console.status(f"Scoring {counted(len(edits), 'edit')}"):
        return evaluator.score(edits)


def result_of(
    edited: EditedModel,
    scores: Scores,
    seconds: float,
    timed: str,
    source: dict[str, Any],
    immediate: Scores | None = None,
) -> dict[str, Any]:
    """A result as JSON: scores, how long what is `timed` took, and all that they depend on."""
    weight = edited.model.get_input_embeddings().weight
    settings = {
        "model": source["model"],
        **edited.config.to_dict(),
        "template": edited.prompts.template.text,
        "chat_template": edited.prompts.chat,
        **source,
        "device": str(weight.device),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }
    return scores_json(
        scores, method=edited.config.method, seconds=seconds, timed=timed, settings=settings, immediate=immediate
    )
