"""How the tree may import itself: rooms know those below them, and no files know each other in a circle."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import corrigenda.editing

ROOT = Path(corrigenda.editing.__file__).resolve().parent.parent
ROOMS = ("edits", "backbone", "routers", "memories", "methods", "store", "scores", "model", "comparison", "cli")
"""Of `editing/`, from the ground up."""
FLOORS = ("kernels", "editing", "serving")


def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name, packages by their own."""
    found = {}
    for folder in FLOORS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str, text: str) -> Iterator[str]:
    """The project's modules that a module imports, in its functions too; type checking aside."""
    package = name if MODULES.get(name, Path()).name == "__init__.py" else name.rpartition(".")[0]
    for node in _statements(ast.parse(text)):
        if node.level:
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            target = ".".join([*base, *filter(None, [node.module])])
        else:
            target = (node.module or "").removeprefix("corrigenda.")
        for alias in node.names:
            whole = f"{target}.{alias.name}"
            if whole in MODULES or target in MODULES:
                yield whole if whole in MODULES else target


def _statements(node: ast.AST) -> Iterator[ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        if isinstance(child, ast.ImportFrom):
            yield child
        else:
            yield from _statements(child)


def room(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "editing" and len(parts) > 1 and parts[1] in ROOMS else None


def backward(name: str, text: str) -> list[str]:
    """What a module imports from above it."""
    found = []
    for target in imports(name, text):
        floors = [FLOORS.index(module.split(".")[0]) for module in (name, target)]
        rooms = [ROOMS.index(room(module)) for module in (name, target) if room(module)]
        if floors[0] < floors[1] or (len(rooms) == 2 and rooms[0] < rooms[1]):
            found.append(target)
    return found


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """The modules of some circle, or none."""
    done, path = set(), []

    def visit(name: str) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        path.append(name)
        for target in sorted(arrows.get(name, ())):
            if found := visit(target):
                return found
        path.pop()
        done.add(name)
        return []

    for name in sorted(arrows):
        if found := visit(name):
            return found
    return []


@pytest.mark.parametrize("name", MODULES)
def test_no_arrow_runs_back_up(name):
    # `corrigenda serve` and `doctor` start what stands above or beside them, and say so by importing it when they run.
    starts = {"editing.cli.serve": ["serving.launcher"]}
    assert backward(name, MODULES[name].read_text(encoding="utf-8")) == starts.get(name, [])


def test_no_circle_of_files():
    arrows = {name: set(imports(name, path.read_text(encoding="utf-8"))) - {name} for name, path in MODULES.items()}
    assert circle(arrows) == []


def test_an_arrow_back_and_a_circle_are_seen():
    assert backward("editing.edits.edit", "from ..model.answers import Answer\n") == ["editing.model.answers"]
    assert backward("kernels.ops", "def f():\n    from corrigenda.editing import errors\n") == ["editing.errors"]
    assert backward("editing.model.answers", "from ..edits.edit import Edit\n") == []
    assert backward("editing.edits.edit", "if TYPE_CHECKING:\n    from ..model.answers import Answer\n") == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


@pytest.mark.parametrize("name", MODULES)
def test_nobody_asks_a_router_or_a_memory_for_its_class(name):
    """What differs between them is a method of `EditRouter` or `Memory`: another one is a file and nothing else."""
    asked = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance"
        if re.search("Router|Memory", ast.unparse(node))
    ]
    assert asked == []
