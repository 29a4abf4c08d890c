"""The options that several commands of the command line share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..methods.registry import summaries

METHOD, SCORES, MACHINE = "Method", "Scores", "Machine"

Model = Annotated[
    str,
    typer.Option(metavar="M", help="`smollm2` (the packaged model), a GGUF file, a model folder, or a hub id."),
]
RecordedModel = Annotated[
    str | None,
    typer.Option(
        metavar="M",
        help="The base model, as elsewhere; by default the one that the edits were written with, if it is at hand.",
    ),
]
EditsFile = Annotated[
    Path,
    typer.Option(
        metavar="FILE",
        help="Edits: JSON Lines, JSON, CSV or Parquet, compressed or not, of our own fields or of a benchmark as it is "
        "published; `-` is standard input.",
    ),
]
Author = Annotated[
    str | None,
    typer.Option(metavar="WHO", help="Who is recorded; by default `$CORRIGENDA_AUTHOR`, else the user's name."),
]
EditsDir = Annotated[Path, typer.Option(metavar="DIR", help="A folder that `corrigenda edit` saved.")]
Router = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="`tokens` finds the edits by rare tokens alone, where the encoder of the router by meaning is missing.",
    ),
]
Decoys = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help='More questions that no edit answers, one a line, with "it" for the subject.'),
]
Limit = Annotated[int | None, typer.Option(metavar="N", help="Take only the first N edits.")]
UniqueSubject = Annotated[bool, typer.Option("--unique-subject", help="Take the first edit of each subject.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result to this file.")]
Threads = Annotated[
    int | None,
    typer.Option(metavar="N", help="CPU threads; by default torch's own choice.", rich_help_panel=MACHINE),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="D", help="`cpu`, `cuda`, ..., or `auto` to spread a large model.", rich_help_panel=MACHINE),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="T",
        help="`float32`, `bfloat16` or `float16`; by default the checkpoint's own.",
        rich_help_panel=MACHINE,
    ),
]
Method = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help=f"{summaries()}.",
        rich_help_panel=METHOD,
    ),
]


def setting(metavar: str, text: str) -> Any:
    """An option of the method's configuration."""
    return typer.Option(metavar=metavar, help=text, rich_help_panel=METHOD)


Store = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that edits were saved in.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="ID...", help="Edits by their ids.")]
Since = Annotated[
    str | None, typer.Option(metavar="TIME", help="Edits written from then on (ISO 8601 in UTC, as `log` shows it).")
]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Edits written up to then; a day counts to its end.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]
