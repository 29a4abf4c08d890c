"""`corrigenda snapshot` and `rollout`: the state of a folder by name, and turning several servers to it at once."""

from __future__ import annotations

from typing import Annotated

import typer

from .app import app, counted, fail, say
from .history import opened, print_json
from .options import JsonFlag, Store


@app.command()
def snapshot(folder: Store, json: JsonFlag = False) -> None:
    """Name the state that a folder is in: the same everywhere, and never changed by what is written later."""
    with opened(folder) as store:
        name, edits = str(store.snapshot), len(store.history.applied())
    if json:
        print_json({"snapshot": name, "edits": edits})
    else:
        say(name)


@app.command()
def rollout(
    folder: Store,
    servers: Annotated[
        list[str], typer.Option(metavar="URL[,URL]", help="The servers' addresses; repeat it, or with commas between.")
    ],
    snapshot: Annotated[
        str | None, typer.Option(metavar="NAME", help="What `corrigenda snapshot` calls it; default: as the folder is.")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="The folder as the servers know it, where that is not this path."),
    ] = None,
    tenant: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose edits they are, where only a tenant's requests see them.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", envvar="CORRIGENDA_KEY", help="The servers' key for changes; better as CORRIGENDA_KEY."
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(metavar="S", help="Seconds that a server has for one answer.")] = 60.0,
    json: JsonFlag = False,
) -> None:
    """Turn servers of one folder to a snapshot of it: all of them, or none.

    First each server gets ready, and answers as before; where one cannot, the others let go of it again, nothing has
    changed, and the exit status is 1. Then the folder says that this is the snapshot to serve, which a server that
    starts later goes by, and each turns to it. One that does not answer any more in that step serves the old snapshot
    until it is started anew, or the same command is run again: it is named, and the exit status is 3.
    """
    from ..store.rollout import Server, roll_out
    from ..store.snapshots import Snapshot

    addresses = [address for given in servers for address in given.split(",") if address]
    done = roll_out(
        folder.resolve(),
        [Server(address, key, timeout) for address in addresses],
        None if snapshot is None else Snapshot.parse(snapshot),
        store=store,
        tenant=tenant,
        tell=lambda line: None if json else say(line),
    )
    if json:
        print_json(done.to_dict())
    elif not done.committed:
        fail(f"Nothing has changed: {counted(len(done.failed), 'server')} could not get ready.")
    elif done.failed:
        fail(
            f"{counted(len(done.failed), 'server')} did not turn to {done.snapshot}: start what is down anew, or run "
            "this again."
        )
    else:
        say(f"All {counted(len(addresses), 'server')} answer by {done.snapshot}.")
    if done.failed:
        raise typer.Exit(3 if done.committed else 1)
