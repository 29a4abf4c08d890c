"""Any field of any entry replaced by any JSON, under a chain that fits: `verify` says so, or every command works.

`CORRIGENDA_SOAK` times as many examples.
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import corrigenda
from forged import entries_of, files_around, forge
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import CONFIGS, WIDTH, add, edit, new_store

from corrigenda.editing import Edit
from corrigenda.editing.edits.edit import Locality
from corrigenda.editing.errors import CorrigendaError
from corrigenda.editing.store import check
from corrigenda.editing.store.ledger import New
from corrigenda.editing.store.repair import repair

EXAMPLES = 5 * int(os.environ.get("CORRIGENDA_SOAK", "1"))
SLOWEST = 10.0

texts = st.text(max_size=12) | st.sampled_from(
    ["\ud800", "a\nb", "\x1b]0;x\x07", "", " ", "9", "NaN", "x" * 5000, "AAAA"]
)
numbers = st.integers() | st.floats() | st.sampled_from([0, -1, 1 << 31, 1 << 63, 1 << 70, 10**400, 1e308, True])
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def original(request, tmp_path_factory):
    """A folder with an entry of every kind."""
    folder = tmp_path_factory.mktemp("forged")
    method = request.param
    store = new_store(folder / "edits", method)
    full = Edit(
        "Who leads Zed?",
        "Ada",
        subject="Zed",
        ground_truth=("Bo",),
        rephrases=("Zed's head?",),
        localities=(Locality("Where is Zed?", "Oslo"),),
        id="a",
        metadata={"source": ["map", 1]},
    )
    words = torch.arange(WIDTH // 32).tolist()
    (a, *_) = add(store, full, edit("b"), edit("c"), known_by=words)
    add(store, edit("d"), supersedes=[[a]], known_by=words)
    store.append([New("declined", {"id": "e", "edit": edit("e").to_dict(), "for": "b", **store.stamp()})])
    store.append([New("scores", {"scores": {str(a): {"rel": 1.0, "routed_loc": 0.25}}, **store.stamp()})])
    store.undo(store.selected(["b", "c"]), author="ann", note="wrong")
    store.redo(store.selected(["c"]))
    store.append([New("dropped", {"edits": [a + 1], **store.stamp()})], dropping=[a + 1])
    store.append([New("note", {"missing": {"found": 3, "entries": 4, "chain": "00"}, **store.stamp()})])
    store.close()
    other = new_store(folder / "other", method)
    add(other, edit("b", "other"), edit("z"), known_by=words)
    other.close()
    assert check.problems(folder / "edits") == []
    return folder


def places(value: Any, before: tuple = ()) -> list[tuple]:
    """The path of every value within a body."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [before, *(place for name, inner in inside for place in places(inner, (*before, name)))]


def mutate(data: st.DataObject, entries: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Replace, remove or add a field of an entry, or an entry."""
    entries = copy.deepcopy(entries)
    at = data.draw(st.integers(0, len(entries) - 1), label="entry")
    kind, body = entries[at]
    match data.draw(st.sampled_from(["replace"] * 6 + ["remove", "add", "kind", "twice", "drop"]), label="how"):
        case "replace":
            place = data.draw(st.sampled_from(places(body)), label="place")
            entries[at] = kind, _with(body, place, data.draw(values, label="value"))
        case "remove":
            place = data.draw(st.sampled_from(places(body)[1:]), label="place")
            inside = body
            for name in place[:-1]:
                inside = inside[name]
            del inside[place[-1]]
        case "add":
            body[data.draw(texts)] = data.draw(values)
        case "kind":
            entries[at] = (
                data.draw(st.sampled_from([*{kind for kind, _ in entries}, "x", "\ud800"]), label="kind"),
                body,
            )
        case "twice":
            entries.append((kind, body))
        case "drop":
            del entries[at]
    return entries


def _with(body: Any, place: tuple, value: Any) -> Any:
    if not place:
        return value
    inside = body
    for name in place[:-1]:
        inside = inside[name]
    inside[place[-1]] = value
    return body


def works(*arguments: object) -> bool:
    """Whether a command of the command line ends well; that it ends in a sentence otherwise, and in time."""
    began = time.process_time()  # of the processor: another's work on the machine is not this command's
    done = corrigenda(*arguments)
    took = time.process_time() - began
    assert done.exception is None or isinstance(done.exception, SystemExit), (arguments, done.exception)
    assert done.exit_code in (0, 1, 2) and took < SLOWEST, (arguments, done.output, took)
    if done.exit_code:
        assert re.match(r"Error: .*\.\n\Z", done.stderr.replace("\n", " ").strip() + "\n"), (arguments, done.stderr)
    return done.exit_code == 0


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_verify_says_so_or_every_command_works(original, tmp_path_factory, data) -> None:
    top = tmp_path_factory.mktemp("example")
    folder = Path(shutil.copytree(original / "edits", top / "edits"))
    other = Path(shutil.copytree(original / "other", top / "other"))
    with contextlib.suppress(UnicodeEncodeError):  # a kind that SQLite cannot hold
        forge(folder, lambda entries: mutate(data, entries))
    ids = [body.get("id") for kind, body in entries_of(folder) if kind == "edit" and isinstance(body, dict)]
    names = [name for name in ids if isinstance(name, str) and name and not name.startswith("-") and "\0" not in name]
    before = files_around(folder)
    found = check.problems(folder)
    assert all(problem.endswith(".") and "\n" not in problem for problem in found), found
    done = {
        command: works(*command.split(), *more)
        for command, more in (
            ("verify", [folder]),
            ("log", [folder]),
            ("log --json", [folder]),
            ("log --status declined", [folder]),
            ("export", [folder, "-"]),
            ("export --all", [folder, "-"]),
            ("diff", [folder, other]),
            ("diff", [other, folder]),
        )
    }
    done |= {f"show {n}": works("show", folder, "--", name) for n, name in enumerate(names)}
    assert files_around(folder) == before
    if names:
        done["undo"] = works("undo", folder, "--leave-others", "--", names[0])
        done["redo"] = works("redo", folder, "--", names[0])
    done["undo by"] = works("undo", folder, "--leave-others", "--since", "2000")
    done["compact"] = works("compact", folder, "--forget-undone")
    assert files_around(folder) == before
    works("merge", other, folder)
    again = check.problems(folder)
    if not found:
        bad = [command for command, well in done.items() if not well and not command.startswith(("export", "redo"))]
        assert not bad and not again, (bad, again)
        assert check.problems(other) == []
    else:
        _repaired(folder)
    shutil.rmtree(top)


def _repaired(folder: Path) -> None:
    """What is refused is repaired, or said to be beyond it."""
    try:
        repair(folder)
    except CorrigendaError as error:
        assert str(error).endswith(".") and "\n" not in str(error)
    else:
        assert check.problems(folder) == []
