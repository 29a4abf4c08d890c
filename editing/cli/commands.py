"""`corrigenda edit`, `eval`, `generate`, `demo` and `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import CorrigendaError
from .app import app, output, tell, use_threads
from .options import (
    METHOD,
    SCORES,
    Author,
    Device,
    Dtype,
    EditsDir,
    EditsFile,
    Json,
    Limit,
    Method,
    Model,
    Threads,
    UniqueSubject,
    setting,
)

DEMO_TEMPLATE = r"Question: {prompt}\nAnswer:"


@app.command()
def edit(
    model: Model,
    edits: EditsFile,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new or empty folder to save the edits in.")],
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Write on in that folder: go on with a stream that was broken off, with the same file, or add the "
            "edits of another.",
        ),
    ] = False,
    on_conflict: Annotated[
        str,
        typer.Option(
            metavar="P",
            help="What to do where a stored edit is about the same fact: `supersede` it, `keep` it and leave the new "
            "one out (`log --status declined` lists those), or `ask`.",
        ),
    ] = "supersede",
    keep_unsolved: Annotated[
        bool | None,
        typer.Option(
            "--keep-unsolved/--leave-unsolved",
            help="What to do with an edit whose own prompt does not get its target in the end: write it all the same, "
            "or leave it out (`log --status unsolved` lists those). By default `associative` leaves it out.",
        ),
    ] = None,
    author: Author = None,
    limit: Limit = None,
    unique_subject: UniqueSubject = False,
    template: Annotated[
        str | None,
        typer.Option(
            metavar="T",
            help=r"What prompts are put in, as `'Question: {prompt}\nAnswer:'`; by default nothing. It is saved, "
            "and `eval` and `generate` use it.",
        ),
    ] = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Ask prompts as the user's turn of a chat.")
    ] = False,
    method: Method = "associative",
    batch_size: Annotated[int | None, setting("B", "Edits written at a time; by default the method's.")] = None,
    steps: Annotated[int | None, setting("N", "Most optimisation steps of an edit; by default the method's.")] = None,
    layer: Annotated[int | None, setting("L", "The edited layer; by default the method's.")] = None,
    threshold: Annotated[
        str | None,
        setting("X", "The score from which a prompt counts as an edit's, 0 to 1; `auto` calibrates it."),
    ] = None,
    eos: Annotated[
        bool | None,
        typer.Option(
            "--eos/--no-eos",
            help="Whether targets are learnt with their end; by default the method's.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    seed: Annotated[int | None, setting("S", "Seed of what is random in a method; by default 42.")] = None,
    others: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any other setting of the method, as often as needed: `--set gain=1.5` (`help(AssociativeConfig)` in "
            "Python explains them).",
            rich_help_panel=METHOD,
        ),
    ] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Score all edits after the stream.", rich_help_panel=SCORES)
    ] = False,
    score_each: Annotated[
        bool,
        typer.Option("--score-each", help="Score each batch right after it was written, too.", rich_help_panel=SCORES),
    ] = False,
    json: Json = None,
    threads: Threads = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Write a file of edits into a model and save them.

    The model itself is not copied: the folder holds the edits, to be used with the same model. Each batch is on the
    disk when it is written; whatever ends a stream, `--resume` goes on with it. The exit status is 3 where not every
    edit holds: greedy decoding of its own prompt gives its target, and its end.
    """
    from ..backbone.loading import check_model
    from ..edits.loading import read_edits
    from ..edits.template import Template
    from ..methods.settings import settings_of
    from ..scores.report import check_json_path
    from ..store.store import is_store
    from . import run
    from .inputs import check_out, check_policy, check_same, make_config, merged_settings, parse_threshold

    resumed = resume and is_store(out)
    if is_store(out) and not resume:
        raise CorrigendaError(
            f"The folder {out} is not empty, it holds edits: name a new one, or write on in it with --resume."
        )
    if not resumed:
        check_out(out)
    check_json_path(json, coming=out)
    check_policy(on_conflict, edits)
    check_model(model)
    settings = {
        "batch_size": batch_size,
        "steps": steps,
        "layer": layer,
        "threshold": parse_threshold(threshold),
        "eos": eos,
        "seed": seed,
    }
    settings = merged_settings(settings, settings_of(method, others or ()))
    config = make_config(method, **settings)
    wrapping = Template.parse(template)
    stream = read_edits(edits, unique_subject=unique_subject, limit=limit)
    tell(stream.notices)
    if resumed:
        check_same(out, method, settings, template, chat_template)
    use_threads(threads)
    run.edit(
        output,
        model,
        stream,
        out,
        config=config,
        template=wrapping,
        chat_template=chat_template,
        device=device,
        dtype=dtype,
        evaluate=evaluate,
        score_each=score_each,
        resume=resumed,
        on_conflict=on_conflict,
        keep_unsolved=keep_unsolved,
        author=author,
        json_path=json,
        source={"edits": str(edits), "limit": limit, "unique_subject": unique_subject},
    )


@app.command("eval")
def evaluate(
    model: Model,
    edits_dir: EditsDir,
    edits: EditsFile,
    limit: Limit = None,
    unique_subject: UniqueSubject = False,
    json: Json = None,
    threads: Threads = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Score saved edits on a file of edits.

    Records are matched with the saved edits by id, else by prompt. In the JSON, `rel`, `gen` and `loc` are teacher-
    forced scores, `free_rel` and `free_gen` those of free generation; `routed` and `routed_gen` the shares of prompts
    and rephrasings that get the right edit, `misfires` that of locality prompts that get any; `seconds` is the time of
    scoring.
    """
    from ..backbone.loading import check_model
    from ..edits.loading import read_edits
    from ..model import saving
    from ..scores.report import check_json_path
    from . import run

    check_json_path(json)
    check_model(model)
    asked = read_edits(edits, unique_subject=unique_subject, limit=limit)
    tell(asked.notices)
    saving.read(edits_dir).close()  # what is wrong with it shows before a model is loaded
    use_threads(threads)
    run.evaluate(
        output,
        model,
        edits_dir,
        asked,
        device=device,
        dtype=dtype,
        json_path=json,
        source={"edits": str(edits), "limit": limit, "unique_subject": unique_subject},
    )


@app.command()
def generate(
    model: Model,
    prompts: Annotated[
        Path,
        typer.Option(metavar="FILE", help="A prompt a line, or JSON Lines with `prompt`; `-` is standard input."),
    ],
    edits_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A folder that `corrigenda edit` saved; without it the plain model answers."),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            metavar="T",
            help="What prompts are put in; by default what was saved with the edits, and nothing without edits. "
            "`'{prompt}'` takes prompts as they are.",
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="The longest answer, in tokens.")] = 32,
    provenance: Annotated[
        bool,
        typer.Option(
            "--provenance",
            help="Say how clearly each edit was chosen, or how nearly one was: its score, and what was needed.",
        ),
    ] = False,
    json: Json = None,
    threads: Threads = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Answer prompts, and say which edit was applied to each.

    Decoding is greedy. The JSON is a list of `prompt`, `text` and `edit`, the applied edit's id or null; with
    `--provenance` also its prompt, the `score` of the `nearest` edit, the score `needed` for that to be applied, and
    the `margin` between the two (`corrigenda why` says what they are made of).
    """
    from ..backbone.loading import check_model
    from ..edits.template import Template
    from ..model import saving
    from ..scores.report import check_json_path
    from . import run
    from .inputs import read_prompts

    check_json_path(json)
    check_model(model)
    if max_new_tokens < 1:
        raise CorrigendaError(f"The longest answer must have at least 1 token, not {max_new_tokens}.")
    wrapping = None if template is None else Template.parse(template)
    asked = read_prompts(prompts)
    if edits_dir is not None:
        saving.read(edits_dir).close()
    use_threads(threads)
    run.generate(
        output,
        model,
        edits_dir,
        asked,
        template=wrapping,
        max_new_tokens=max_new_tokens,
        provenance=provenance,
        device=device,
        dtype=dtype,
        json_path=json,
    )


@app.command()
def demo(
    model: Model = "smollm2",
    edits: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Edits instead of the project's own made-up facts.")
    ] = None,
    method: Method = "associative",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the edits and their scores are saved.")] = Path(
        "demo-out"
    ),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what an earlier demo left in that folder.")
    ] = False,
    threads: Threads = None,
) -> None:
    """Edit a real model and show its answers, before and after.

    Streams made-up facts into the model, asks for them in other words too, scores them, saves them, and asks again in
    a new process. Takes a few minutes on two CPU cores.
    """
    from ..backbone.loading import check_model
    from ..edits.loading import read_edits
    from . import demo as demonstration
    from .demo_facts import demo_edits
    from .inputs import make_config

    demonstration.check_out(out, overwrite)
    check_model(model)
    config = make_config(method)
    if edits is None:
        stream = demo_edits()
    else:
        stream = read_edits(edits)
        tell(stream.notices)
    use_threads(threads)
    demonstration.run(
        output,
        model,
        stream,
        out,
        config=config,
        template=DEMO_TEMPLATE,
        overwrite=overwrite,
        threads=threads,
        source={"edits": "the project's own" if edits is None else str(edits)},
    )


@app.command()
def doctor() -> None:
    """Say what this machine has, and which kernels are live."""
    from .machine import show

    show(output)
