"""`corrigenda bench` and `corrigenda report`: methods beside each other, and what came of it as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import CorrigendaError
from .app import app, counted, output, say, tell, use_threads
from .panels import MachineOptions, with_panels


@app.command()
@with_panels
def bench(
    out: Annotated[Path, typer.Option(metavar="DIR", help="A folder for the results, one JSON file a run.")],
    machine: MachineOptions,
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A YAML file with `model`, `edits`, `at`, `template`, `protected` (whether methods are `told` those "
            "questions, or these are only `asked` in the end), `scored` (of how many edits at most a score is) and "
            "`runs` (`method`, `set`, `name`, `at`).",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="M", help="As elsewhere; by default the plan's, else `smollm2`.")
    ] = None,
    edits: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="As elsewhere; by default the project's own facts."),
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A method with its defaults; as often as needed.")
    ] = None,
    at: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="Score after so many edits; as often as needed, by default 1, 10 and 100."),
    ] = None,
    template: Annotated[
        str | None, typer.Option(metavar="T", help=r"What prompts are put in, as `'Question: {prompt}\nAnswer:'`.")
    ] = None,
) -> None:
    """Compare methods on one file of edits.

    Each run writes a stream of the first edits of each subject and scores it after the numbers of edits that were
    asked for: Rel, Gen, Loc, free generation, and whether `protected` questions keep their answers; seconds and bytes
    an edit, and peak memory. A run that is in the folder already is not repeated, so a comparison that was broken off
    goes on. `corrigenda report` makes a page of the results.
    """
    from ..backbone.loading import check_model
    from ..comparison.plan import Plan, Run, read_plan
    from ..edits.demo_facts import demo_edits
    from ..edits.loading import read_edits

    if plan is not None:
        if method:
            raise CorrigendaError("The plan names its runs: leave out --method.")
        asked = read_plan(plan, model=model, edits=edits, at=at, template=template)
    else:
        runs = [Run(name, name, {}) for name in method or ()]
        asked = Plan(model or "smollm2", edits, at or [1, 10, 100], runs, template)
    check_model(asked.model)
    stream = demo_edits()[: asked.most]
    if asked.edits is not None:
        stream = read_edits(asked.edits, unique_subject=True, limit=asked.most)
        tell(stream.notices)
    if len(stream) < asked.most:
        found = counted(len(stream), "edit")
        name = asked.edits or "The project's own file"
        raise CorrigendaError(f"{name} has {found} of different subjects, not {asked.most}.")
    out.mkdir(parents=True, exist_ok=True)
    use_threads(machine.threads)
    from ..backbone.loading import load_base
    from ..comparison.runs import is_done, result_path, write_run

    failed, base = 0, None
    for run in asked.runs:
        path = result_path(out, run)
        if is_done(path, asked, run):
            say(f"{run.name} is in {path} already.")
            continue
        base = base or load_base(asked.model, device=machine.device, dtype=machine.dtype)
        try:
            write_run(asked, run, list(stream), path, base, say)
        except CorrigendaError as error:  # the others are worth having all the same
            failed += 1
            say(f"{run.name} ended: {error}", "yellow")
    results = counted(len(asked.runs) - failed, "result")
    say(f"{out} has {results}; `corrigenda report {out}` makes a page of them.")
    if failed:
        raise typer.Exit(1)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with results of `corrigenda bench`.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page; by default `report.html` in that folder.")
    ] = None,
) -> None:
    """Make one page of results, with plots that stand beside it as SVG files too.

    Needs matplotlib: `pip install 'corrigenda[report]'`.
    """
    from ..comparison.report import write_report

    path = out or folder / "report.html"
    pictures = write_report(folder, path)
    say(f"Wrote {path}, and {counted(len(pictures), 'plot')} beside it.", console=output)
