"""`corrigenda verify`, `sign`, `push`, `repair`, `compact`, `export`, `merge`, `migrate`, `capacity`: of folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from ..errors import CorrigendaError
from .app import app, counted, errors, fail, output, say, tell, use_threads
from .history import opened, print_json
from .options import Author, JsonFlag, RecordedModel, Store
from .panels import MachineOptions, with_panels


@app.command()
def verify(
    folder: Store,
    json: JsonFlag = False,
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Public SSH keys, one a line: one of them must have signed all there is."),
    ] = None,
) -> None:
    """Check a folder, everything against everything; the exit status is 0 only if all of it holds.

    Every entry against its chain of checksums, every tensor against its own, records against the method and the model's
    widths, the head against the ledger, the file's structure. Nothing is changed. Checksums find damage; who may write
    the folder can make them anew, but for `--key`.
    """
    from ..methods.config import EditingConfig
    from ..model.recorded_rule import another_rule
    from ..store.check import problems
    from ..store.signing import check_signed
    from ..store.store import check_format

    check_format(folder)
    if not folder.exists():
        raise CorrigendaError(f"There is no folder {folder} with saved edits.")
    found = problems(folder)
    if key is not None and not found:
        with opened(folder) as store:
            try:
                check_signed(store, key)
            except CorrigendaError as error:
                found.append(str(error))
    if json:
        print_json({"holds": not found, "problems": found})
    elif not found:
        with opened(folder) as store:
            count = len(store.history.applied())
            for missing in store.history.missing:
                kept, named = missing["found"], missing["entries"]
                say(f"A repair found {kept} of {named} entries: what the others held is lost.", "yellow")
            if sentence := another_rule(store, EditingConfig.from_dict(store.header["config"])):
                say(sentence, "yellow")
            say(f"All {store.ledger.count} entries hold; {counted(count, 'edit')} in effect.")
    else:
        for problem in found:
            fail(problem)
    if found:
        raise typer.Exit(1)


@app.command()
def sign(
    folder: Store,
    key: Annotated[
        Path,
        typer.Option(metavar="FILE", help="A private SSH key; or a public one, whose private key an agent holds."),
    ],
) -> None:
    """Sign a folder as it is: who has your public key can tell that its edits are those that you signed.

    Every later change, an undo too, is to be signed again. `ssh-keygen` makes the signature, in `signature.json`.
    """
    from ..store.signing import sign as signed

    with opened(folder, write=True) as store:
        count = signed(store, key)
    say(f"Signed all {count} entries of {folder}.")


@app.command()
def push(
    folder: Store,
    repository: Annotated[str, typer.Argument(metavar="USER/NAME", help="A model repository; it is made if need be.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository a private one.")] = False,
    revision: Annotated[str | None, typer.Option(metavar="BRANCH", help="The branch to send to.")] = None,
    message: Annotated[str, typer.Option(help="The commit's message.")] = "Upload edits",
) -> None:
    """Send a folder's edits to a hub, with a model card that lists them; `hf auth login` keeps the token.

    The whole ledger goes, undone edits, their texts and authors' names too. A card that the repository or the folder
    has stays, but for what is marked in it as the ledger's state.
    """
    from ..model.hub import push as pushed

    with opened(folder) as store:
        where = pushed(store, repository, private=private or None, revision=revision, commit_message=message)
    say(f"Sent all {store.ledger.count} entries of {folder}: {where}")


@app.command()
def repair(folder: Store) -> None:
    """Make a damaged folder whole again by leaving out what is damaged.

    Entries from the first damaged one on are lost, and edits whose own tensors are; the damaged ledger is kept beside
    the new one.
    """
    from ..store.repair import repair as repaired

    done = repaired(folder)
    for line in done or ["Nothing is damaged."]:
        say(line)


@app.command()
def compact(
    folder: Store,
    forget_undone: Annotated[
        bool, typer.Option("--forget-undone", help="Drop the tensors of undone edits: they cannot be redone then.")
    ] = False,
    author: Author = None,
) -> None:
    """Give unused space back to the file system."""
    from ..store.store import compact as compacted

    with opened(folder, write=True) as store:
        before = _size(folder)  # only now is it known to be a folder
        forgotten = compacted(store, forget_undone, author)
    dropped = f" The tensors of {counted(len(forgotten), 'undone edit')} were dropped." if forgotten else ""
    say(f"{before / 1e6:.1f} MB before, {_size(folder) / 1e6:.1f} MB now.{dropped}")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


@app.command()
def export(
    folder: Store,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file; `-` is standard output.")],
    everything: Annotated[
        bool, typer.Option("--all", help="Also undone and superseded edits, each with its status.")
    ] = False,
) -> None:
    """Write the edits in effect as JSON Lines, which `corrigenda edit` reads.

    Where none is in effect, no file is written, and the exit status is 1: what reads the file next would fail on it.
    """
    from ..store import exchange

    with opened(folder) as store:
        if str(file) == "-":
            for line in exchange.exported(store, everything):
                typer.echo(line)
            return
        count = exchange.export(store, file, everything)
    say(f"Wrote {counted(count, 'edit')} to {file}.")


@app.command()
def merge(
    folder: Store,
    other: Annotated[Path, typer.Argument(metavar="OTHER", help="A folder whose edits are added to those of DIR.")],
    on_conflict: Annotated[
        str, typer.Option(metavar="P", help="Where both are about the same fact: `supersede` DIR's edit, or `keep` it.")
    ] = "supersede",
    author: Author = None,
    json: JsonFlag = False,
) -> None:
    """Add the edits in effect in another folder, written for the same model with the same settings."""
    from ..store.exchange import merge as merged
    from ..store.store import CONFLICT_POLICIES

    if on_conflict not in CONFLICT_POLICIES:
        raise CorrigendaError(f'--on-conflict must be one of {", ".join(CONFLICT_POLICIES)}, not "{on_conflict}".')
    with opened(other) as source, opened(folder, write=True) as store:
        result = merged(store, source, on_conflict, author)
        notices = store.notices
    if json:
        print_json(result._asdict())
        return
    parts = [f"Added {counted(len(result.added), 'edit')}"]
    for count, text in (
        (len(result.same), "were there already"),
        (len(result.out), "are there, but not in effect"),
        (len(result.superseded), "were superseded"),
        (len(result.kept), "were left out for those that are there"),
        (len(result.renamed), "got another id"),
    ):
        if count:
            parts.append(f"{count} {text}")
    say("; ".join(parts) + ".")
    tell(notices, "with --json all are told")


@app.command()
def migrate(
    folder: Store,
    router: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Write the edits for this router, `meaning` or `tokens`, into --out."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The new folder, with --router.")] = None,
    model: RecordedModel = None,
    author: Author = None,
) -> None:
    """Bring a folder that an earlier version saved up to this one, in place.

    One without a ledger gets one. Where edits are found by meaning, and were written with another rule for that than
    this version's: it says which of their own questions (prompts, rephrasings, protected ones, localities) are not
    decided as they say, and records this version's rule. Earlier rules are not kept, so what else is decided otherwise
    is not known.

    With `--router` and `--out`: the edits of a folder with a ledger, in a new one and for another router, or for
    `meaning` as this version has it. History, values and times stay; `meaning` takes an encoder's pass over every edit.
    A signature has to be made again, either way.
    """
    if router is not None or out is not None:
        if router is None or out is None:
            raise CorrigendaError("--router and --out go together: the router, and the new folder for its edits.")
        from ..model.rerouting import rerouted
        from ..model.why import recorded_model

        with opened(folder) as kept:
            count = rerouted(kept, router, out, model or recorded_model(kept))
        say(f'{out} has {counted(count, "edit")} for the router "{router}"; {folder} is as it was.')
        return
    from ..store.migrate import is_first_format
    from ..store.migrate import migrate as migrated
    from ..store.store import is_store

    if is_store(folder):
        _take_rule(folder, model, author)
        return
    if not is_first_format(folder):
        raise CorrigendaError(f"{folder} holds no edits of an earlier version: there is nothing to migrate.")
    store = migrated(folder)
    count = len(store.history.edits)
    store.close()
    say(f"{folder} has a ledger now, with {counted(count, 'edit')}.")


def _take_rule(folder: Path, model: str | None, author: str | None) -> None:
    """Record this version's rule in a folder, and say what it decides otherwise than the edits do."""
    from ..model.new_rule import check_another, judged, record_rule
    from ..model.why import recorded_model

    with opened(folder, write=True) as store:
        check_another(store)
        asked = judged(store, model or recorded_model(store))
        record_rule(store, author)
    wrong = [one for one in asked if not one.holds]
    tell([one.in_words for one in wrong], "`corrigenda why` says the same of one question", most=50)
    right = f"all but {len(wrong)}" if wrong else "all"
    say(
        f"{folder} is recorded as found by this version's rule: of {counted(len(asked), 'question')} of its edits "
        f"{right} are decided as they say."
    )


@app.command()
@with_panels
def capacity(folder: Store, machine: MachineOptions, model: RecordedModel = None, json: JsonFlag = False) -> None:
    """Say how full the memory is: hit rates, margins, collisions and norms, before the answers suffer."""
    from ..backbone.loading import check_model
    from ..model.capacity import report
    from ..model.why import recorded_model
    from .run import load

    if model is None:
        with opened(folder) as store:
            model = recorded_model(store)
    check_model(model)
    use_threads(machine.threads)
    edited = load(errors, model, machine, edits=folder)
    try:
        found = report(edited)
    finally:
        edited.detach()
    if json:
        print_json(found)
        return
    for name, value in found.items():
        text = f"{value:.4f}" if isinstance(value, float) else "-" if value is None else str(value)
        output.print(Text.assemble((f"{name:<28}", "bold"), text), soft_wrap=True)
