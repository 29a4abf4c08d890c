"""`corrigenda log`, `show`, `undo`, `redo`, `why` and `diff`: what was written, and taking it back."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ..errors import CorrigendaError
from ..shown import one_line, shown, shown_json
from ..store.selection import Selection
from .app import app, counted, errors, output, say, tell
from .options import Author, Ids, JsonFlag, RecordedModel, Router, Since, Store, Until

if TYPE_CHECKING:
    from ..store.store import EditStore
    from ..store.stored import StoredEdit

By = Annotated[str | None, typer.Option("--by", metavar="WHO", help="Edits by this author.")]
_LONGEST_TABLE = 1000

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
            help="Only `applied`, `undone`, `superseded`, `unsolved` (left out, for they do not hold) or `lost` edits; "
            "or `declined` ones: those that were not written, for the sake of a stored one.",
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
        history, chosen = store.history, Selection((), by, since, until)
        if status == DECLINED:
            rows = (declined(history, stored) for stored in history.select_declined(chosen))
        else:
            statuses = history.statuses()
            rows = (
                summary(history, stored, statuses[stored.seq])
                for stored in history.select(chosen)
                if status in (None, statuses[stored.seq])
            )
        if json:
            print_json_list(rows)
        else:
            _print_log(rows)


def _print_log(rows: Iterator[dict[str, Any]]) -> None:
    """A table; of a long log one after the other, for a table's cells take fifty times the ledger's bytes."""
    part: list[dict[str, Any]] | None = None
    while part is None or len(part) == _LONGEST_TABLE:
        part = list(itertools.islice(rows, _LONGEST_TABLE))
        table = Table()
        for heading in ("id", "status", "prompt", "target", "time", "author"):
            # What other commands ask for as it is shown here.
            width = 10 if heading == "status" else None  # as long as the longest of one word
            table.add_column(heading, no_wrap=heading in ("id", "time"), overflow="fold", min_width=width)
        for row in part:
            said = f"{row['status']} for {shown(row['for'])}" if "for" in row else row["status"]
            read = (one_line(row[name]) for name in ("prompt", "target"))
            cells = (shown(row["id"]), said, *read, row["time"][:19], shown(row["author"] or ""))
            table.add_row(*map(Text, cells))
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
            output.print(Text.assemble((f"{key:<12}", "bold"), one_line(text)), soft_wrap=True)


@app.command()
def undo(
    folder: Store,
    ids: Ids = None,
    by: By = None,
    since: Since = None,
    until: Until = None,
    note: Note = None,
    author: Author = None,
    resolve: Annotated[
        bool,
        typer.Option("--resolve", help="Solve anew what was solved beside them or after them; this loads the model."),
    ] = False,
    leave_others: Annotated[
        bool,
        typer.Option("--leave-others", help="Leave what was solved beside them or after them as it was solved."),
    ] = False,
    model: RecordedModel = None,
) -> None:
    """Take edits out: one, a list, a time range, all by an author.

    Their questions then get the base model's answer; or that of the edits that they superseded, which are in again. It
    is not unlearning: the ledger keeps them, and `redo` puts them back. Of methods whose edits stand on those before
    them, others that stay owe them something: `--resolve` solves these anew, as if the undone had never come, and
    `--leave-others` leaves them as they were solved. Without either, such an undo is refused.
    """
    selection = Selection(tuple(ids or ()), by, since, until)
    if resolve and leave_others:
        raise CorrigendaError("Name one of --resolve and --leave-others: others are solved anew, or left as they are.")
    if resolve:
        _resolve(folder, selection, note, author, model)
    else:
        _change("undo", folder, selection, note, author, check=None if leave_others else _check_none_stands_on)


def _resolve(folder: Path, selection: Selection, note: str | None, author: str | None, model: str | None) -> None:
    from ..model.why import recorded_model
    from .panels import MachineOptions
    from .run import load

    if not selection:
        raise CorrigendaError("Name the edits to undo: by ids, --by an author, --since or --until a time.")
    with opened(folder) as store:
        store.selected(selection, wanted=True)  # before a model is loaded
        name = model or recorded_model(store)
    with contextlib.closing(load(errors, name, MachineOptions(), edits=folder)) as edited:
        edited.write_into(folder)
        change = edited.undo(
            selection.ids,
            by=selection.by,
            since=selection.since,
            until=selection.until,
            author=author,
            note=note,
            resolve=True,
        )
    names = ", ".join(stored.id for stored in change.edits[:8]) + (", ..." if len(change.edits) > 8 else "")
    say(f"Took out {counted(len(change.edits), 'edit')}{': ' + names if names else ''}.")
    tell(change.notes, f"see `corrigenda log {folder}`")


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
    """Put undone edits in again, each in its old place; or unsolved ones, by their ids, though they do not hold."""
    _change("redo", folder, Selection(tuple(ids or ()), by, since, until), note, author)


def _change(
    what: str,
    folder: Path,
    selection: Selection,
    note: str | None,
    author: str | None,
    check: Callable[[EditStore, list[StoredEdit]], None] | None = None,
) -> None:
    if not selection:
        raise CorrigendaError(f"Name the edits to {what}: by ids, --by an author, --since or --until a time.")
    with opened(folder, write=True) as store:
        chosen = store.selected(selection, wanted=what == "undo")
        if check is not None:
            check(store, chosen)
        change = (store.undo if what == "undo" else store.redo)(chosen, author=author, note=note)
        notices = store.notices
    names = ", ".join(stored.id for stored in change.edits[:8]) + (", ..." if len(change.edits) > 8 else "")
    done = {"undo": "Took out", "redo": "Put in again"}[what]
    unchanged = len(chosen) - len(change.edits)
    already = f" {unchanged} were so already." if unchanged else ""
    say(f"{done} {counted(len(change.edits), 'edit')}{': ' + names if names else ''}.{already}")
    tell([*change.notes, *notices], f"see `corrigenda log {folder}`")


def _check_none_stands_on(store: EditStore, undone: list[StoredEdit]) -> None:
    """Raise where edits that stay were solved beside the undone ones or after them, and owe them something."""
    from ..methods.config import EditingConfig

    out = {stored.seq for stored in undone if stored.wanted}
    first = min((stored.batch for stored in undone if stored.wanted), default=store.ledger.count + 1)
    others = [seq for seq in store.history.applied() if seq not in out and store.history.edits[seq].batch >= first]
    if others and EditingConfig.from_dict(store.header["config"]).stands_on_earlier:
        name = store.header["config"]["method"]
        raise CorrigendaError(
            f"{counted(len(others), 'edit')} beside or after what is undone stood on it, as edits of {name} do: "
            "--resolve solves them anew, as if it had never come; --leave-others leaves them as they were solved."
        )


@app.command()
def why(
    folder: Store,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="A prompt, as `generate` would be asked it.")],
    model: RecordedModel = None,
    most: Annotated[int, typer.Option(metavar="N", help="How many edits to show.")] = 5,
    router: Router = None,
    json: JsonFlag = False,
) -> None:
    """Say which edit answers a prompt, and how near the others come.

    A score is 0 to 1 (of WISE, a distance). The best edit is applied where its score reaches what is *needed*: the
    threshold, and a share of the next best edit's score, for a prompt that two edits fit alike is neither's. An undone
    or unsolved edit that matches better than the best one keeps it from being applied. The JSON has all these by name.
    """
    from ..model.why import nearest_edits

    with opened(folder) as store:
        found = nearest_edits(store, prompt, model, most, router)
        count = len(store.history.applied())
        out = {name: store.history.taken_out_as(name) for name in _taken_out(found)}
        for notice in store.notices:
            say(notice, "yellow", errors)
    if json:
        print_json(found)
        return
    for line in _explained(found, count, out):
        say(line)
    if not found["nearest"]:
        return
    table = Table()
    for heading in ("id", "score", "prompt", "target"):
        table.add_column(heading)
    for row in found["nearest"]:
        style = "green" if row["applies"] else ""
        table.add_row(
            Text(shown(row["id"]), style),
            Text(f"{row['score']:.3f}", style),
            *(Text(one_line(row[name]), style) for name in ("prompt", "target")),
        )
    output.print(table)


def _taken_out(found: dict[str, Any]) -> set[str]:
    """The ids of edits out of the memory that `why` names."""
    undone = found["undone"] or {"id": None}
    return {found["withdrawn"], undone["id"]} - {None}


def _explained(found: dict[str, Any], count: int, out: dict[str, str]) -> Iterator[str]:
    """What `why` found among so many edits in effect, in words: what is compared with what, and how that came out.

    out: of the edits that are named and not in effect, whether they are "undone" or "unsolved".
    """
    digits = 3 if abs(found["margin"]) >= 0.001 else 6  # what decides shows, however little it is
    score, needed = (f"{found[name]:.{digits}f}" for name in ("score", "needed"))
    margin, undone = f"{found['margin']:+.{digits}f}", found["undone"]
    if found["withdrawn"] is not None:
        best = found["nearest"][0]["id"]
        yield (
            f'No edit applies: "{shown(best)}" has the score {score}, but "{shown(found["withdrawn"])}", which was '
            f"{_left(out[found['withdrawn']])}, has {needed}: margin {margin}."
        )
        return
    if not count:
        yield "No edit applies: none is in effect."
    else:
        answer = "No edit applies" if found["edit"] is None else f'Edit "{shown(found["edit"])}" applies'
        if found.get("memory") is not None:
            answer = f"One of the edits in {found['memory']} applies"
        scores = [row["score"] for row in found["nearest"]]
        higher = bool(scores) and max(scores) > scores[0] + 1e-6  # more than rounding
        best = "the nearest key's score" if higher else "best score"
        yield f"{answer}: {best} {score}, needed {needed}, margin {margin}."
        if higher:
            yield "A key that is further from the prompt scores higher for its wider radius, and is not asked."
        if found.get("reason"):
            yield f'It is near "{shown(found["nearest"][0]["id"])}", but {found["reason"]}.'
        if found.get("begun"):
            yield f"The prompt {found['begun']}."
        if found.get("rival_weight"):
            yield (
                f"Needed is the threshold, {found['threshold']:.3f}, plus {found['rival_weight']:g} times the next "
                f"best score, {found['runner_up']:.3f}."
            )
    if undone is not None and undone["score"] >= 0.001:
        name, likeness, left = shown(undone["id"]), undone["score"], _left(out[undone["id"]])
        yield f'Of the edits that were {left}, "{name}" comes nearest: its score is {likeness:.3f}.'


def _left(status: str) -> str:
    return "left out as unsolved" if status == "unsolved" else "undone"


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
        say(f"{mark} {shown(row['id'])}: {one_line(row['prompt'])} -> {one_line(row['target'])}", style)


@contextlib.contextmanager
def opened(folder: Path, *, write: bool = False) -> Iterator[EditStore]:
    """Within: the store of a folder, which is closed at the end."""
    from ..store.store import EditStore, check_format

    check_format(folder)
    store = EditStore.open(folder, write=write)
    for notice in store.ledger.notices:
        say(notice, "yellow", errors)
    try:
        yield store
    finally:
        store.close()


def print_json(data: Any) -> None:
    """JSON on standard output, as it is: no colours, no wrapping."""
    typer.echo(shown_json(data, indent=2))


def print_json_list(rows: Iterable[Any]) -> None:
    """The same of a list, one item after the other."""
    before = "["
    for row in rows:
        typer.echo(before + "\n  " + shown_json(row, indent=2).replace("\n", "\n  "), nl=False)
        before = ","
    typer.echo("[]" if before == "[" else "\n]")


def _compact(value: Any) -> str:
    return shown_json(value)
