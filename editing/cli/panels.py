"""Options that belong together, as dataclasses: a command names one, and has an option for each of its fields."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from .options import (
    METHOD,
    SCORES,
    Author,
    Device,
    Dtype,
    EditsFile,
    Json,
    Limit,
    Method,
    Threads,
    UniqueSubject,
    setting,
)

if TYPE_CHECKING:
    from ..edits.template import Template
    from ..methods.config import EditingConfig


def with_panels(command: Callable[..., None]) -> Callable[..., None]:
    """A command as Typer reads it: a parameter that is a dataclass stands for its fields, an option each."""
    hints = get_type_hints(command, include_extras=True)
    panels: dict[str, Any] = {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}
    options: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        whole = inspect.signature(panels[name]).parameters.values() if name in panels else [parameter]
        types = get_type_hints(panels[name], include_extras=True) if name in panels else hints
        options += [one.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=types[one.name]) for one in whole]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        parts = {
            name: panel(**{field.name: given.pop(field.name) for field in dataclasses.fields(panel)})
            for name, panel in panels.items()
        }
        command(**given, **parts)

    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


@dataclass(frozen=True)
class MachineOptions:
    """Where a model runs."""

    threads: Threads = None
    device: Device = None
    dtype: Dtype = None


@dataclass(frozen=True)
class SourceOptions:
    """A file of edits, and which of them are taken."""

    edits: EditsFile
    limit: Limit = None
    unique_subject: UniqueSubject = False

    def read(self) -> Any:
        """The edits, and notices on those that were left out."""
        from ..edits.loading import read_edits

        return read_edits(self.edits, unique_subject=self.unique_subject, limit=self.limit)

    def to_dict(self) -> dict[str, Any]:
        """As results record it."""
        return {"edits": str(self.edits), "limit": self.limit, "unique_subject": self.unique_subject}


@dataclass(frozen=True)
class StreamOptions:
    """How a stream of edits goes into a store."""

    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Write on in that folder: go on with a stream that was broken off, with the same file, or add the "
            "edits of another.",
        ),
    ] = False
    on_conflict: Annotated[
        str,
        typer.Option(
            metavar="P",
            help="What to do where a stored edit is about the same fact: `supersede` it, `keep` it and leave the new "
            "one out (`log --status declined` lists those), or `ask`.",
        ),
    ] = "supersede"
    keep_unsolved: Annotated[
        bool | None,
        typer.Option(
            "--keep-unsolved/--leave-unsolved",
            help="What to do with an edit whose own prompt does not get its target in the end: write it all the same, "
            "or leave it out (`log --status unsolved` lists those). By default `associative` leaves it out.",
        ),
    ] = None
    author: Author = None


@dataclass(frozen=True)
class FormatOptions:
    """What prompts are put in."""

    template: Annotated[
        str | None,
        typer.Option(
            metavar="T",
            help=r"What prompts are put in, as `'Question: {prompt}\nAnswer:'`; by default nothing. It is saved, "
            "and `eval` and `generate` use it.",
        ),
    ] = None
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Ask prompts as the user's turn of a chat.")
    ] = False

    def parsed(self) -> Template:
        from ..edits.template import Template

        return Template.parse(self.template)


@dataclass(frozen=True)
class MethodOptions:
    """The method and its settings: some by options of their own, all by `--set`."""

    method: Method = "associative"
    batch_size: Annotated[int | None, setting("B", "Edits written at a time; by default the method's.")] = None
    steps: Annotated[int | None, setting("N", "Most optimisation steps of an edit; by default the method's.")] = None
    layer: Annotated[int | None, setting("L", "The edited layer; by default the method's.")] = None
    threshold: Annotated[
        str | None,
        setting("X", "The score from which a prompt counts as an edit's, 0 to 1; `auto` calibrates it."),
    ] = None
    eos: Annotated[
        bool | None,
        typer.Option(
            "--eos/--no-eos",
            help="Whether targets are learnt with their end; by default the method's.",
            rich_help_panel=METHOD,
        ),
    ] = None
    decoys: Annotated[
        Path | None,
        setting("FILE", 'More questions that no edit answers, one a line, with "it" for the subject.'),
    ] = None
    seed: Annotated[int | None, setting("S", "Seed of what is random in a method; by default 42.")] = None
    others: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any other setting of the method, as often as needed: `--set gain=1.5` (`help(AssociativeConfig)` in "
            "Python explains them).",
            rich_help_panel=METHOD,
        ),
    ] = None

    def settings(self) -> dict[str, Any]:
        """What was given, by the names of the configuration's fields."""
        from ..methods.settings import settings_of
        from .inputs import merged_settings, parse_threshold

        own = ("batch_size", "steps", "layer", "eos", "seed")
        named = {**{name: getattr(self, name) for name in own}, "threshold": parse_threshold(self.threshold)}
        if self.decoys is not None:
            from ..routers.meaning.decoys import read_decoys

            named["decoys"] = "\n".join(read_decoys(self.decoys))
        return merged_settings(named, settings_of(self.method, self.others or ()))

    def config(self) -> EditingConfig:
        from ..methods.registry import config_for

        return config_for(self.method, **self.settings())


@dataclass(frozen=True)
class ReportOptions:
    """What is scored while edits are written, and where the result goes."""

    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Score all edits after the stream.", rich_help_panel=SCORES)
    ] = False
    score_each: Annotated[
        bool,
        typer.Option("--score-each", help="Score each batch right after it was written, too.", rich_help_panel=SCORES),
    ] = False
    json: Json = None


@dataclass(frozen=True)
class AnswerOptions:
    """How prompts are answered, and what is said of each answer."""

    template: Annotated[
        str | None,
        typer.Option(
            metavar="T",
            help="What prompts are put in; by default what was saved with the edits, and nothing without edits. "
            "`'{prompt}'` takes prompts as they are.",
        ),
    ] = None
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="The longest answer, in tokens.")] = 32
    provenance: Annotated[
        bool,
        typer.Option(
            "--provenance",
            help="Say how clearly each edit was chosen, or how nearly one was: its score, and what was needed.",
        ),
    ] = False
    json: Json = None
