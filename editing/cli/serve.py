"""`corrigenda serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import CorrigendaError
from .app import app
from .options import Router


@app.command()
def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="`smollm2`, a GGUF file, a model folder, or a hub id.")],
    edits_dir: Annotated[
        list[Path],
        typer.Option(metavar="DIR", help="A folder of edits that every request sees; repeat it for more."),
    ],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[-- OPTION...]", help="Options of the stack's own server.")
    ] = None,
    tenant: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DIR", help="A folder whose edits only this tenant's requests see; repeat it."),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where requests may have further folders loaded from.")
    ] = None,
    capacity: Annotated[
        int | None, typer.Option(metavar="N", help="How many edits there is room for on a GPU.")
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="How many tokens an edit's target has on average, by default 8: it sizes that room. An edit of more "
            "than 512 is taken only where this is as large.",
        ),
    ] = None,
    resident: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="How many edits have their rows where the layer reads, and how many requests a batch has at most; "
            "others are read when a request comes for them. Of transformers' server.",
        ),
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Refuse to undo edits through the server.")] = False,
    edits_api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]KEY",
            help="Who changes edits over HTTP must send this as x-corrigenda-key; a change is recorded as NAME's. "
            "Better given as CORRIGENDA_EDITS_API_KEY, one a line. Without one, changes are taken from this machine "
            "alone.",
        ),
    ] = None,
    edits_read_key: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]KEY", help="Who reads about edits must send it; or CORRIGENDA_EDITS_READ_KEY."),
    ] = None,
    edits_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="What the header Host may say to the routes for edits.")
    ] = None,
    edits_origin: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="What the header Origin may say to them.")
    ] = None,
    tenant_header_only: Annotated[
        bool, typer.Option("--tenant-header-only", help="Take tenants from the header alone, which a gateway sets.")
    ] = False,
    max_tenants: Annotated[int | None, typer.Option(metavar="N", help="How many tenants there may be: 64.")] = None,
    max_folders: Annotated[int | None, typer.Option(metavar="N", help="How many folders are served: 256.")] = None,
    signed_by: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Public SSH keys: only folders that one of them signed are served."),
    ] = None,
    router: Router = None,
    stack: Annotated[str, typer.Option(metavar="S", help="Whose server: `transformers` or `vllm`.")] = "transformers",
) -> None:
    """Serve a model with edits: an OpenAI-compatible server, whose every request is answered by its own edit.

    Edits are loaded, undone and explained while it serves, under /v1/edits. A request names its tenant in the header
    x-corrigenda-tenant; the answer's header x-corrigenda-edit says which edit gave it.
    """
    from ...serving.launcher import launch

    tenants: dict[str, list[str]] = {}
    for given in tenant or ():
        name, separator, folder = given.partition("=")
        if not (name and separator and folder):
            raise CorrigendaError(f'A tenant is given as NAME=DIR, not as "{given}".')
        tenants.setdefault(name, []).append(folder)
    settings = {
        "edits": [str(folder) for folder in edits_dir],
        "tenants": tenants,
        "root": None if root is None else str(root),
        "capacity": capacity,
        "rows": rows,
        "resident": resident,
        "read_only": read_only,
        "most_tenants": max_tenants,
        "most_folders": max_folders,
        "tenant_header_only": tenant_header_only,
        "hosts": edits_host,
        "origins": edits_origin,
        "signed_by": None if signed_by is None else str(signed_by),
        "router": router,
    }
    keys = {"changing": edits_api_key or [], "reading": edits_read_key or []}
    launch(stack, model, {name: value for name, value in settings.items() if value is not None}, options or [], keys)
