"""`corrigenda route`: which requests the edits of a folder would answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ..errors import CorrigendaError
from ..shown import one_line, shown
from .app import app, counted, errors, output, say, tell
from .history import opened
from .options import Decoys, Json, RecordedModel, Router, Store


@app.command()
def route(
    folder: Store,
    prompts: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="A request a line; or JSON Lines with `prompt`, or `messages` as of a chat; `-` is standard input.",
        ),
    ],
    edits: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Edits that are not written: say what these would answer beside the others."),
    ] = None,
    model: RecordedModel = None,
    router: Router = None,
    decoys: Decoys = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw all requests' margins (.png; pip install 'corrigenda[report]')."),
    ] = None,
    most: Annotated[int, typer.Option(metavar="N", help="How many doubtful requests to show.")] = 10,
    json: Json = None,
) -> None:
    """Say which requests the edits would answer, without answering them: what a folder, or new edits, would touch.

    The base model is not loaded. The doubtful requests, near an edit by a small margin on either side, come first. The
    JSON is a list in the order of the file of `prompt`, `id` (the edit that answers, or null), `score`, `margin`, the
    `nearest` edit and the `reason` why that one does not answer; with `--edits` also `new`, whether the edit that
    answers is one of these, and `before`, the edit that answers without them.
    """
    from ..edits.loading import read_edits
    from ..model.route import doubtful, grouped, routed_requests
    from ..model.why import recorded_model
    from ..routers.meaning.decoys import read_decoys
    from ..scores.report import check_json_path, write_json
    from .inputs import read_requests
    from .plot import check_plot, draw_margins

    check_json_path(json)
    if plot is not None:
        check_plot(plot)
    if most < 0:
        raise CorrigendaError(f"The number of requests to show must be at least 0, not {most}.")
    asked = read_requests(prompts)
    read = None if edits is None else read_edits(edits)
    new = [] if read is None else list(read)
    if read is not None:
        tell(read.notices)
    more = [] if decoys is None else read_decoys(decoys)
    with opened(folder) as store:
        found = routed_requests(store, asked, model or recorded_model(store), new, router=router, decoys=more)
        for notice in store.notices:
            say(notice, "yellow", errors)
    if plot is not None:
        draw_margins(found, plot)
    if json is not None:
        write_json(json, [one.to_dict(edits is not None) for one in found])
    groups = grouped(found)
    answered = sum(map(len, groups.values()))
    say(
        f"{answered} of {counted(len(found), 'request')} would get the answer of one of {counted(len(groups), 'edit')}."
    )
    if edits is not None:
        fresh = [one for one in found if one.new]
        taken = [one for one in fresh if one.before is not None]
        say(f"{len(fresh)} that of a new one, {len(taken)} of which an edit that is written answers now.")
    if groups:
        table = Table()
        for heading in ("edit", "requests", "least margin", "its request"):
            table.add_column(heading)
        for name, of_edit in groups.items():
            first = of_edit[0]
            cells = shown(name), str(len(of_edit)), f"{first.margin:+.3f}", one_line(first.prompt)
            table.add_row(*(Text(cell, "green" if first.new else "") for cell in cells))
        output.print(table)
    for one in doubtful(found)[:most]:
        what = "gets" if one.id is not None else "does not get"
        why = f" It {one.reason}." if one.reason else ""
        say(f'{one.margin:+.3f}  {one_line(one.prompt)}: {what} the answer of "{shown(one.nearest or "")}".{why}')
