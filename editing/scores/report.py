"""What a run reports: a table of scores for the eye, and the same with settings, versions and commit as JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.table import Table

from ..errors import CorrigendaError
from ..store.files import write_whole
from .evaluate import Scores

_VERSIONED = ("corrigenda", "torch", "transformers", "triton")


def scores_table(scores: Scores, title: str) -> Table:
    """Scores by what was asked (columns) and how they were taken (rows)."""
    table = Table(title=title, title_justify="left", caption_justify="left")
    for heading in ("", "as written", "in other words", "unrelated"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row("teacher-forced (Rel, Gen, Loc)", *map(_shown, (scores.rel, scores.gen, scores.loc)))
    table.add_row("free generation", *map(_shown, (scores.free_rel, scores.free_gen, None)))
    unrouted = None if scores.misfires is None else 1 - scores.misfires
    table.add_row("right edit, or rightly none", *map(_shown, (scores.routed, scores.routed_gen, unrouted)))
    return table


def _shown(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"


def scores_json(
    scores: Scores,
    *,
    method: str,
    seconds: float,
    timed: str,
    settings: dict[str, Any],
    immediate: Scores | None = None,
) -> dict[str, Any]:
    """Scores as JSON; `timed` says what `seconds` and `edits_per_second` are about, "writing" or "scoring"."""
    result: dict[str, Any] = {"n": scores.n, "method": method, **scores.to_dict()}
    result |= {
        "seconds": round(seconds, 3),
        "edits_per_second": round(scores.n / seconds, 4) if seconds > 0 else None,
        "timed": timed,
    }
    if immediate is not None:
        result["immediate"] = immediate.to_dict()
    return {**result, "settings": settings, "versions": versions(), "commit": commit()}


def versions() -> dict[str, str | None]:
    """What the result was made with; None for a package that is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _VERSIONED}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The git commit of the sources, where they are this project's checkout and not an installed copy."""
    folder = Path(__file__).resolve().parents[1]
    project = folder.parent / "pyproject.toml"
    if not project.is_file() or 'name = "corrigenda"' not in project.read_text(encoding="utf-8"):
        return None
    command = ("git", "-C", str(folder), "rev-parse", "--show-prefix", "HEAD")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    prefix, _, head = done.stdout.strip().partition("\n")
    return head if done.returncode == 0 and prefix == f"{folder.name}/" else None


def check_json_path(path: Path | None, coming: Path | None = None) -> None:
    """Raise where a result could not be written, before the work; the folder `coming` will exist by then."""
    if path is None:
        return
    if path.is_dir():
        raise CorrigendaError(f"{path} is a folder, not a file to write the result to.")
    if str(path) == "-" or (path.exists() and not path.is_file()):  # a device, which a whole file would replace
        raise CorrigendaError(f'The result is written to a plain file, not to "{path}": name a new one.')
    if path.parent.is_dir():
        if not os.access(path.parent, os.W_OK):
            raise CorrigendaError(f"{path} cannot be written: its folder is read-only.")
    elif coming is None or path.parent.resolve() != coming.resolve():
        raise CorrigendaError(f"{path} cannot be written: there is no folder {path.parent}.")


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_whole(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
