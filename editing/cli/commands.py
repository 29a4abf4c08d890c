"""`corrigenda edit`, `eval`, `generate`, `demo` and `doctor`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from ..errors import CorrigendaError
from .app import app, errors, output, tell, use_threads
from .options import EditsDir, Json, Method, Model, Router, Threads
from .panels import (
    AnswerOptions,
    FormatOptions,
    MachineOptions,
    MethodOptions,
    ReportOptions,
    SourceOptions,
    StreamOptions,
    with_panels,
)
from .ranks import process_group

DEMO_TEMPLATE = r"Question: {prompt}\nAnswer:"


@app.command()
@with_panels
def edit(
    model: Model,
    source: SourceOptions,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new or empty folder to save the edits in.")],
    stream: StreamOptions,
    prompts: FormatOptions,
    method: MethodOptions,
    report: ReportOptions,
    machine: MachineOptions,
) -> None:
    """Write a file of edits into a model and save them.

    The model itself is not copied: the folder holds the edits, to be used with the same model. Each batch is on the
    disk when it is written; whatever ends a stream, `--resume` goes on with it. The exit status is 3 where not every
    edit holds: greedy decoding of its own prompt gives its target, and its end. `torchrun --nproc-per-node N -m
    corrigenda.editing.cli edit ...` has N processes solve batches in turn, and one of them write the bits of one.
    """
    from ..backbone.loading import check_model
    from ..scores.report import check_json_path
    from ..store.store import is_store
    from . import run
    from .inputs import check_out, check_policy, check_same

    resumed = stream.resume and is_store(out)
    if is_store(out) and not stream.resume:
        raise CorrigendaError(
            f"The folder {out} is not empty, it holds edits: name a new one, or write on in it with --resume."
        )
    if not resumed:
        check_out(out)
    check_json_path(report.json, coming=out)
    check_policy(stream.on_conflict, source.edits)
    check_model(model)
    config, template = method.config(), prompts.parsed()
    edits = source.read()
    tell(edits.notices)
    if resumed:
        check_same(out, method.method, method.settings(), prompts.template, prompts.chat_template)
    use_threads(machine.threads)
    new = {} if resumed else {"config": config, "template": template, "chat_template": prompts.chat_template}
    with process_group() as group:
        first = group is None or group.rank() == 0
        edited = run.load(output if first else errors, model, machine, edits=out if resumed else None, **new)
        with contextlib.closing(edited):  # its folder is free for another writer when this ends, however it does
            if not first:
                edited.edit(list(edits), group=group)
                return
            run.edit(output, run.Writing(edited, model, edits, out, resumed, group), stream, report, source.to_dict())


@app.command("eval")
@with_panels
def evaluate(
    model: Model,
    edits_dir: EditsDir,
    source: SourceOptions,
    machine: MachineOptions,
    json: Json = None,
    router: Router = None,
) -> None:
    """Score saved edits on a file of edits.

    Records are matched with the saved edits by id, else by prompt. In the JSON, `rel`, `gen` and `loc` are teacher-
    forced scores, `free_rel` and `free_gen` those of free generation; `routed` and `routed_gen` the shares of prompts
    and rephrasings that get the right edit, `misfires` that of locality prompts that get any; `seconds` is the time of
    scoring.
    """
    from ..backbone.loading import check_model
    from ..model import saving
    from ..scores.report import check_json_path
    from . import run

    check_json_path(json)
    check_model(model)
    asked = source.read()
    tell(asked.notices)
    saving.read(edits_dir).close()  # what is wrong with it shows before a model is loaded
    use_threads(machine.threads)
    edited = run.load(output, model, machine, edits=edits_dir, router=router)
    run.evaluate(output, edited, asked, json, {"model": model, "edits_dir": str(edits_dir), **source.to_dict()})


@app.command()
@with_panels
def generate(
    model: Model,
    prompts: Annotated[
        Path,
        typer.Option(metavar="FILE", help="A prompt a line, or JSON Lines with `prompt`; `-` is standard input."),
    ],
    answer: AnswerOptions,
    machine: MachineOptions,
    edits_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A folder that `corrigenda edit` saved; without it the plain model answers."),
    ] = None,
    router: Router = None,
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

    check_json_path(answer.json)
    check_model(model)
    if answer.max_new_tokens < 1:
        raise CorrigendaError(f"The longest answer must have at least 1 token, not {answer.max_new_tokens}.")
    template = None if answer.template is None else Template.parse(answer.template)
    asked = read_prompts(prompts)
    if edits_dir is not None:
        saving.read(edits_dir).close()
    use_threads(machine.threads)
    edited = run.load(output, model, machine, edits=edits_dir, router=router)
    run.generate(output, edited, asked, template, answer)


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
    from ..edits.demo_facts import demo_edits
    from ..edits.loading import read_edits
    from ..methods.registry import config_for
    from . import demo as demonstration

    demonstration.check_out(out, overwrite)
    check_model(model)
    config = config_for(method)
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
