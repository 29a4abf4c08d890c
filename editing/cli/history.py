"""`corrigenda log`, `show`, `undo`, `redo`, `why` and `diff`: what was written, and taking it back."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ..errors import CorrigendaError
from .app import app, output
from .options import Author, Ids, JsonFlag, Since, Store, Until

if TYPE_CHECKING:
    from ..store.store import EditStore

By = Annotated[str | None, typer.Option("--by", metavar="WHO", help="Edits by this author.")]
Note = Annotated[str | None, typer.Option(metavar="TEXT", help="Why; it is kept in the ledger.")]


@app.command()
def log(
    folder: Store,
    by: By = None,
    since: Since = None,
    until: Until = None,
    status: Annotated[
        str | None,
        typer.Option(
            metavar="S",
            help="Only `applied`, `undone`, `superseded` or `lost` edits; or `declined` ones: those that were not "
            "written, for the sake of a stored one.",
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """List the edits of a folder, in the order in which they were written."""
    from ..store.history import DECLINED, STATUSES
    from ..store.report import declined, summary

    if status not in (None, *STATUSES, DECLINED):
        raise CorrigendaError(f'--status must be one of {", ".join((*STATUSES, DECLINED))}, not "{status}".')
    with opened(folder) as store:
        history, chosen = store.history, {"author": by, "since": since, "until": until}
        if status == DECLINED:
            rows = [declined(history, seq, body) for seq, body in history.select_declined(**chosen)]
        else:
            statuses = history.statuses()
            rows = [
                summary(history, stored, statuses[stored.seq])
                for stored in history.select(**chosen)
                if status in (None, statuses[stored.seq])
            ]
    if json:
        print_json(rows)
        return
    table = Table()
    for heading in ("id", "status", "prompt", "target", "time", "author"):
        # What other commands ask for as it is shown here.
        table.add_column(heading, no_wrap=heading in ("id", "time"), overflow="fold")
    for row in rows:
        said = f"{row['status']} for {row['for']}" if "for" in row else row["status"]
        cells = (row["id"], said, row["prompt"], row["target"], row["time"][:19], row["author"] or "")
        table.add_row(*(Text(_line(cell)) for cell in cells))
    output.print(table)


@app.command()
def show(
    folder: Store,
    name: Annotated[str, typer.Argument(metavar="ID", help="An edit's id.")],
    json: JsonFlag = False,
) -> None:
    """Show all that is recorded of one edit, and of those about the same fact."""
    from ..store.report import details

    with opened(folder) as store:
        (stored,) = store.selected([name])
        found = details(store, stored)
    if json:
        print_json(found)
        return
    for key, value in found.items():
        if value not in (None, [], {}, ""):
            text = value if isinstance(value, str) else _compact(value)
            output.print(Text.assemble((f"{key:<12}", "bold"), _line(text)), soft_wrap=True)


@app.command()
def undo(
    folder: Store,
    ids: Ids = None,
    by: By = None,
    since: Since = None,
    until: Until = None,
    note: Note = None,
    author: Author = None,
) -> None:
    """Take edits out: one, a list, a time range, all by an author.

    Their questions then get the base model's answer; or that of the edits that they superseded, which are in again. It
    is not unlearning: the ledger keeps them, and `redo` puts them back.
    """
    _change("undo", folder, ids, by, since, until, note, author)


@app.command()
def redo(
    folder: Store,
    ids: Ids = None,
    by: By = None,
    since: Since = None,
    until: Until = None,
    note: Note = None,
    author: Author = None,
) -> None:
    """Put undone edits in again, each in its old place."""
    _change("redo", folder, ids, by, since, until, note, author)


def _change(
    what: str,
    folder: Path,
    ids: list[str] | None,
    by: str | None,
    since: str | None,
    until: str | None,
    note: str | None,
    author: str | None,
) -> None:
    if not ids and by is None and since is None and until is None:
        raise CorrigendaError(f"Name the edits to {what}: by ids, --by an author, --since or --until a time.")
    with opened(folder, write=True) as store:
        chosen = store.selected(ids or (), author=by, since=since, until=until, wanted=what == "undo")
        change = getattr(store, what)(chosen, author=author, note=note)
    names = ", ".join(stored.id for stored in change.edits[:8]) + (", ..." if len(change.edits) > 8 else "")
    done = {"undo": "Took out", "redo": "Put in again"}[what]
    unchanged = len(chosen) - len(change.edits)
    output.print(
        Text(
            f"{done} {len(change.edits)} edits{': ' + _line(names) if names else ''}."
            + (f" {unchanged} were so already." if unchanged else "")
        ),
        soft_wrap=True,
    )
    for line in change.notes:
        output.print(Text(line, "yellow"), soft_wrap=True)


@app.command()
def why(
    folder: Store,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="A prompt, as `generate` would be asked it.")],
    model: Annotated[
        str | None,
        typer.Option(metavar="M", help="The base model; by default the one that the edits were written with."),
    ] = None,
    most: Annotated[int, typer.Option(metavar="N", help="How many edits to show.")] = 5,
    json: JsonFlag = False,
) -> None:
    """Say which edit answers a prompt, and how near the others come."""
    from ..store.why import nearest_edits

    with opened(folder) as store:
        found = nearest_edits(store, prompt, model, most)
    if json:
        print_json(found)
        return
    applied = next((row for row in found["nearest"] if row["applies"]), None)
    answer = "No edit applies" if applied is None else f'Edit "{applied["id"]}" applies'
    if found.get("memory") is not None:
        answer = f"One of the edits in {found['memory']} applies"
    elif found["withdrawn"] is not None:
        answer = f'No edit applies, for "{_line(found["withdrawn"])}", which was undone, matches better'
    output.print(
        Text(f"{answer}: margin {found['margin']:+.3f} to the threshold {found['threshold']:.3f}."), soft_wrap=True
    )
    if not found["nearest"]:
        return
    table = Table()
    for heading in ("id", "score", "prompt", "target"):
        table.add_column(heading)
    for row in found["nearest"]:
        style = "green" if row["applies"] else ""
        table.add_row(
            *(Text(_line(text), style) for text in (row["id"], f"{row['score']:.3f}", row["prompt"], row["target"]))
        )
    output.print(table)


@app.command()
def diff(
    folder: Store,
    other: Annotated[Path, typer.Argument(metavar="OTHER", help="Another such folder.")],
    json: JsonFlag = False,
) -> None:
    """Say how the edits in effect differ between two folders."""
    from ..store.exchange import difference

    with opened(folder) as one, opened(other) as two:
        found = difference(one, two)
    if json:
        print_json(found)
        return
    if not found:
        output.print("The edits in effect are the same.")
    for row in found:
        mark, style = {"removed": ("-", "red"), "added": ("+", "green"), "changed": ("~", "yellow")}[row["change"]]
        text = f"{mark} {row['id']}: {row['prompt']} -> {row['target']}"
        output.print(Text(_line(text), style), soft_wrap=True)


@contextlib.contextmanager
def opened(folder: Path, *, write: bool = False) -> Iterator[EditStore]:
    """Within: the store of a folder, which is closed at the end."""
    from ..store.store import EditStore, check_format

    check_format(folder)
    store = EditStore.open(folder, write=write)
    try:
        yield store
    finally:
        store.close()


def print_json(data: Any) -> None:
    """JSON on standard output, as it is: no colours, no wrapping."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _line(text: str) -> str:
    """`text` on one line, without what a terminal would not print."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
