"""The pages of the documentation, and the blocks of code in them.

A block of `sh` or `python` runs in a test, or a comment before it says why not: `<!-- not run: why -->`. A block of
`text` after it is what it prints: each of its lines is part of that.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_line import works
from tree import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "bench/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
_FENCE = re.compile(
    r"(?:^<!-- not run: (?P<why>.+?) -->\n)?^```(?P<kind>\S*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """What stands between two fences, and why it is not run, if it is not."""

    kind: str
    text: str
    not_run: str | None


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    found = _FENCE.finditer(page.read_text(encoding="utf-8"))
    return [Block(match["kind"], match["text"], match["why"]) for match in found]


def run_page(page: Path) -> None:
    """Run the blocks of a page in order, in the working folder, and compare what they print."""
    names: dict[str, Any] = {"__name__": "__main__"}
    said = ""
    for block in blocks(page):
        if block.kind == "text" and block.not_run is None:
            for line in block.text.splitlines():
                assert line in said, f"{name_of(page)} promises {line!r}, and this was printed:\n{said}"
        elif block.not_run is None and block.kind in ("sh", "python"):
            said = run_shell(block.text) if block.kind == "sh" else _python(block.text, names)


def _python(text: str, names: dict[str, Any]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(text, "<page>", "exec"), names)
    return printed.getvalue()


def run_shell(text: str) -> str:
    """What the commands of a block print: those of `corrigenda` run in this process, which has torch loaded."""
    said = ""
    for command in _commands(text):
        if command.startswith("corrigenda "):
            said += works(*shlex.split(command, comments=True)[1:])
        else:
            done = subprocess.run(["bash", "-e", "-c", command], capture_output=True, text=True, timeout=60)
            said += done.stdout + done.stderr
            assert done.returncode == 0, f"{command}\n{said}"
    return said


def _commands(text: str) -> Iterator[str]:
    """The commands of a block: a line each, with the lines that it goes on in, and with its here-document."""
    lines = iter(text.splitlines())
    for line in lines:
        while line.endswith("\\"):
            line = line[:-1] + next(lines).lstrip()
        document = re.search(r"<<'(\w+)'$", line)
        while document and line.rpartition("\n")[2] != document[1]:
            line += "\n" + next(lines)
        if line.strip() and not line.startswith("#"):
            yield line
