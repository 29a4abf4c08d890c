"""What `corrigenda edit`, `eval` and `generate` do once their inputs are known to be good."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.text import Text

from ..edits.edit import Edit
from ..edits.template import Template
from ..methods.config import EditingConfig
from ..model.answers import Answer
from ..model.edited_model import EditedModel
from ..scores.evaluate import Evaluator, Scores
from ..scores.report import scores_json, scores_table, write_json
from ..shown import one_line, shown
from ..store.matching import matched
from .app import counted, say, tell
from .stream import StoppedError, Stream, write_stream

NOT_ALL_HOLD = 3
"""The exit status of a stream that went to its end, where not all of its edits hold."""


def edit(
    console: Console,
    model: str,
    edits: Sequence[Edit],
    out: Path,
    *,
    config: EditingConfig,
    template: Template,
    chat_template: bool,
    device: str | None,
    dtype: str | None,
    evaluate: bool,
    score_each: bool,
    resume: bool,
    on_conflict: str,
    keep_unsolved: bool | None,
    author: str | None,
    json_path: Path | None,
    source: dict[str, Any],
) -> None:
    """Write edits, saved as they come, and score them where asked; what was written before an end too early stays."""
    new = {} if resume else {"config": config, "template": template, "chat_template": chat_template}
    edited = load(console, model, edits=out if resume else None, device=device, dtype=dtype, **new)
    with contextlib.closing(edited):  # its folder is free for another writer when this ends, however it does
        evaluator = Evaluator(edited)
        stream = write_stream(
            edited,
            edits,
            console,
            evaluator if score_each else None,
            store=out.resolve(),
            resume=resume,
            on_conflict=on_conflict,
            keep_unsolved=keep_unsolved,
            author=author,
        )
        tell([] if edited.store is None else edited.store.notices, f"see `corrigenda log {out}` and its --status")
        if resume and stream.passed:
            before = stream.passed - stream.done - stream.left_out
            say(f"{before} of {stream.passed} edits were recorded before.", console=console)
        if stream.ended_by is not None:
            if stream.done:
                ended = f"The stream ended after {stream.done} of {len(edits)} edits"
                say(f"{ended}; what was written is saved in {out}.", console=console)
                _tell_held(console, stream)
            if isinstance(stream.ended_by, StoppedError):
                raise typer.Exit(130)
            raise stream.ended_by
        inside = stream.done - len(stream.unsolved)
        took = f"{stream.seconds:.1f} s ({stream.rate:.2f} edits/s)"
        say(f"Wrote {counted(inside, 'edit')} in {took}; saved in {out}.", console=console)
        if stream.left_out:
            left_out = f"{stream.left_out} {'was' if stream.left_out == 1 else 'were'} left out"
            say(f"{left_out}: `corrigenda log {out} --status declined` has them.", console=console)
        immediate = evaluator.immediate_scores()
        if immediate is not None:
            console.print(scores_table(immediate, "Right after each batch"))
        scores = unscored(inside)
        if evaluate:
            scores = score(console, evaluator, edited.edits)
            console.print(scores_table(scores, f"After {counted(scores.n, 'edit')}"))
        if json_path is not None:
            result = scores_json(
                scores,
                method=edited.config.method,
                seconds=stream.seconds,
                timed="writing",
                settings=settings(edited, model, **source),
                immediate=immediate,
            )
            counts = {"held": stream.held, "unsolved": stream.unsolved, "failing": stream.failing}
            write_json(json_path, {**result, **counts})
        _tell_held(console, stream)
        if stream.held < stream.done:
            raise typer.Exit(NOT_ALL_HOLD)


def _tell_held(console: Console, stream: Stream) -> None:
    """The line that says how many edits of a stream hold."""
    if stream.done == 0:
        return
    names = [*stream.unsolved, *stream.failing]
    some = ", ".join(shown(name) for name in names[:8]) + (", ..." if len(names) > 8 else "")
    say(f"{stream.held} of {counted(stream.done, 'edit')} hold{f'; not {some}' if names else ''}.", console=console)


def evaluate(
    console: Console,
    model: str,
    edits_dir: Path,
    edits: Sequence[Edit],
    *,
    device: str | None,
    dtype: str | None,
    json_path: Path | None,
    source: dict[str, Any],
) -> None:
    """Score saved edits on `edits`."""
    edited = load(console, model, edits=edits_dir, device=device, dtype=dtype)
    asked, superseded, missing = matched(edits, edited.store.history)
    for count, what in ((missing, "not in effect"), (superseded, "superseded, and not scored,")):
        if count:
            say(f"{count} of {len(edits)} edits of the file are {what} in {edits_dir}.", console=console)
    start = time.perf_counter()
    scores = score(console, Evaluator(edited), asked)
    seconds = time.perf_counter() - start
    console.print(scores_table(scores, f"{counted(scores.n, 'edit')}, {len(edited.edits)} stored"))
    if json_path is not None:
        result = scores_json(
            scores,
            method=edited.config.method,
            seconds=seconds,
            timed="scoring",
            settings=settings(edited, model, edits_dir=str(edits_dir), superseded=superseded, **source),
        )
        write_json(json_path, result)


def generate(
    console: Console,
    model: str,
    edits_dir: Path | None,
    prompts: Sequence[str],
    *,
    template: Template | None,
    max_new_tokens: int,
    provenance: bool,
    device: str | None,
    dtype: str | None,
    json_path: Path | None,
) -> None:
    """Answer prompts, on the screen or in a JSON file."""
    edited = load(console, model, edits=edits_dir, device=device, dtype=dtype)
    with console.status(f"Answering {len(prompts)} prompts"):
        answers = edited.answer(prompts, max_new_tokens, template=template)
    if json_path is not None:
        found = [
            {"prompt": prompt, "text": answer.text, **_source(answer, provenance)}
            for prompt, answer in zip(prompts, answers)
        ]
        write_json(json_path, found)
        say(f"Wrote {counted(len(found), 'answer')} to {json_path}.", console=console)
        return
    for prompt, answer in zip(prompts, answers):
        line = Text.assemble((one_line(prompt), "bold"), "\n  ", one_line(answer.text))
        source = answer.provenance
        if source.applied:
            line.append(f"  [{shown(source.memory or source.edit.id)}]", "dim")
        nearest = source.memory if source.nearest is None else source.nearest.id
        if provenance and nearest is not None:
            compared = f"{source.score:.3f}, needed {source.needed:.3f}, margin {source.margin:+.3f}"
            line.append(f"  {shown(nearest)} {compared}", "dim")
        if provenance and source.withdrawn is not None:
            why = edited.store.history.taken_out_as(source.withdrawn)
            line.append(f" to {shown(source.withdrawn)}, {why}", "dim")
        console.print(line, soft_wrap=True)


def _source(answer: Answer, provenance: bool) -> dict[str, Any]:
    return answer.provenance.to_dict() if provenance else {"edit": answer.edit.id if answer.edit else None}


def load(console: Console, model: str, **options: Any) -> EditedModel:
    """`EditedModel.from_pretrained`, with a sign of life."""
    with console.status(Text(f"Loading {model}")):  # as text: a status reads markup, whatever the console does
        return EditedModel.from_pretrained(model, **options)


def score(console: Console, evaluator: Evaluator, edits: Sequence[Edit]) -> Scores:
    """All scores of `edits`, with a sign of life."""
    with console.status(f"Scoring {counted(len(edits), 'edit')}"):
        return evaluator.score(edits)


def unscored(count: int) -> Scores:
    """The scores of edits that were written and not scored."""
    return Scores(n=count, rel=None, gen=None, loc=None, free_rel=None, free_gen=None)


def settings(edited: EditedModel, model: str, **source: Any) -> dict[str, Any]:
    """What a result depends on, as JSON can hold it."""
    weight = edited.model.get_input_embeddings().weight
    return {
        "model": model,
        **edited.config.to_dict(),
        "template": edited.prompts.template.text,
        "chat_template": edited.prompts.chat,
        **source,
        "device": str(weight.device),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }
