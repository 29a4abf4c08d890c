"""Reference pages of the documentation, made from the program itself: its commands, its public names, its settings.

    python tools/reference_pages.py FOLDER

writes cli.md, python.md and settings.md there; `make docs` makes them with the rest of the site.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from corrigenda.editing.cli import app
from corrigenda.editing.methods.config import CONFIGS
from corrigenda.editing.methods.documented import field_texts

PUBLIC = ("corrigenda.editing", "corrigenda.serving", "corrigenda.serving.vllm")


def pages() -> dict[str, str]:
    """Each page by its name."""
    return {"cli.md": cli_page(), "python.md": python_page(), "settings.md": settings_page()}


def cli_page() -> str:
    """Every command with its arguments and options, as `--help` tells them."""
    group: Any = typer.main.get_command(app)
    parts = ["# The command line", _prose(group.help), "`corrigenda COMMAND --help` says the same in a terminal."]
    for name, command in group.commands.items():
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        options = [one for one in command.params if one.param_type_name == "option"]
        usage = " ".join(["corrigenda", name, *(_shown(one) for one in arguments), "[OPTIONS]" if options else ""])
        parts += [f"## {name}", f"```text\n{usage.rstrip()}\n```", _prose(command.help)]
        rows = [(_spelt(one), _meaning(one), _default(one)) for one in (*arguments, *options)]
        parts.append(_table(("option", "what it is", "default"), rows))
    return "\n\n".join(parts) + "\n"


def python_page() -> str:
    """Every public name with its signature and docstring, and every public method of a class."""
    parts = [
        "# Python",
        "What the packages promise to keep: their public names. Shapes, units and errors are in the texts.",
    ]
    for module_name in PUBLIC:
        module = importlib.import_module(module_name)
        parts += [f"## {module_name}", _prose(inspect.getdoc(module))]
        for name in module.__all__:
            value = getattr(module, name)
            parts += [f"### {name}", *_described(name, value)]
            if inspect.isclass(value):
                for member, method in _methods(value):
                    parts += [f"#### {name}.{member}", *_described(member, method)]
    return "\n\n".join(parts) + "\n"


def settings_page() -> str:
    """Every setting of every method: its type, its default and the sentence that stands under it."""
    parts = [
        "# Settings",
        "Every setting of every method. `corrigenda edit --method NAME --set SETTING=VALUE` reaches each of them, and "
        "so does the configuration class in Python. A default of `None`, or `auto`, is filled in for the model when "
        "edits are first written; `corrigenda show DIR ID` prints what it came to.",
    ]
    for kind in dict.fromkeys(CONFIGS.values()):
        parts += [f"## {kind.__name__}", " · ".join(f"`--method {name}`" for name in kind.names)]
        parts.append(_prose(_without_settings(kind)))
        hints, texts = get_type_hints(kind), field_texts(kind)
        rows = [
            (f"`{field.name}`", _type(hints[field.name]), f"`{field.default!r}`", texts[field.name])
            for field in dataclasses.fields(kind)
        ]
        parts.append(_table(("setting", "type", "default", "what it is"), rows))
    return "\n\n".join(parts) + "\n"


def _methods(kind: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties of a class that this project has a docstring for, as the source has them."""
    seen = set()
    for owner in kind.__mro__:
        if not owner.__module__.startswith("corrigenda."):
            continue
        for name, member in vars(owner).items():
            plain = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
            if name.startswith("_") or name in seen or not (inspect.isfunction(plain) or isinstance(plain, property)):
                continue
            seen.add(name)
            if inspect.getdoc(plain):
                yield name, plain


class _Bare(str):
    """An annotation as it is written, without quotation marks."""

    __repr__ = str.__str__


def _described(name: str, value: Any) -> list[str]:
    text = _prose(_without_settings(value))
    if not callable(value) or (inspect.isclass(value) and issubclass(value, Exception)):
        return [text]
    if value in CONFIGS.values():
        return [text, f"Its settings: [{name}](settings.md#{name.lower()})."]
    return [f"```text\n{name}{_signature(value)}\n```", text]


def _signature(value: Any) -> str:
    """What is given to a function and what it returns; arguments stand in lines of their own where they are many."""
    found = inspect.signature(value)
    given, keywords = [], False
    for one in found.parameters.values():
        if one.name in ("self", "cls"):
            continue
        if one.kind is one.KEYWORD_ONLY and not keywords:
            given.append("*")
        keywords = keywords or one.kind in (one.KEYWORD_ONLY, one.VAR_POSITIONAL)
        bare = one.annotation if one.annotation is one.empty else _Bare(one.annotation)
        default = one.default if one.default is one.empty or repr(one.default)[0] != "<" else _Bare("...")
        given.append(str(one.replace(annotation=bare, default=default)))
    returned = (
        "" if inspect.isclass(value) or found.return_annotation is found.empty else f" -> {found.return_annotation}"
    )
    line = f"({', '.join(given)}){returned}"
    return line if len(line) <= 90 else "(\n    " + ",\n    ".join(given) + f"\n){returned}"


def _without_settings(value: Any) -> str:
    """A docstring without the list of settings that `documented` adds."""
    return (inspect.getdoc(value) or "").partition("\n\nSettings:\n")[0]


def _prose(text: str | None) -> str:
    """A docstring as Markdown: what it indents stays as it is written."""
    return inspect.cleandoc(text or "").replace("\b\n", "")


def _type(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(f'`"{mode}"`' for mode in get_args(hint))
    if get_origin(hint) is Union or type(hint).__name__ == "UnionType":
        return " or ".join(_type(one) for one in get_args(hint))
    return "None" if hint is type(None) else hint.__name__


def _shown(argument: Any) -> str:
    return argument.make_metavar() if not argument.metavar else argument.metavar


def _spelt(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_shown(parameter)}`"
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    return f"{names} `{parameter.metavar}`" if parameter.metavar else names


def _meaning(parameter: Any) -> str:
    return " ".join((parameter.help or "").split())


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    shown = value is not None and value is not False and value != () and not callable(value)
    return f"`{getattr(value, 'value', value)}`" if shown else ""


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
