"""The texts beside a configuration's fields, where `help()` finds them: each is written once, under its field."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any


def field_texts(kind: type) -> dict[str, str]:
    """The text under each field of a class and of those above it, by the field's name; "" for a field without one."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if "__annotations__" not in vars(owner) or owner is object:
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        except (OSError, TypeError):  # no source at hand, as in a frozen program
            continue
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for node, after in zip(body, [*body[1:], None]):
            if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation):
                name = ast.unparse(node.target)
                found.setdefault(name, "")
                if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                    found[name] = " ".join(str(after.value.value).split())
    return found


def documented(kind: Any) -> Any:
    """A dataclass whose docstring lists its fields with their defaults and texts."""
    lines = []
    for name, text in field_texts(kind).items():
        field = kind.__dataclass_fields__[name]
        lines.append(textwrap.fill(f"{name} = {field.default!r}  {text}", 100, subsequent_indent="    "))
    kind.__doc__ = inspect.cleandoc(kind.__doc__) + "\n\nSettings:\n" + "\n".join(lines)
    return kind
