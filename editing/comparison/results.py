"""Results of runs, read from the files of a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CorrigendaError


@dataclass(frozen=True)
class Result:
    """One run: its scores and costs `after` so and so many edits, and all that they depend on."""

    name: str
    method: str
    edits: str
    model: str
    after: Mapping[int, Mapping[str, Any]]
    settings: Mapping[str, Any]
    made_with: str

    @property
    def last(self) -> Mapping[str, Any]:
        """After the most edits."""
        return self.after[max(self.after)]

    def values(self, measure: str) -> dict[int, float]:
        """A measure by the number of edits, where it was taken."""
        found = {count: mark.get(measure) for count, mark in sorted(self.after.items())}
        return {count: value for count, value in found.items() if value is not None}


def read_results(folder: Path) -> dict[tuple[str, str], list[Result]]:
    """All runs in a folder, by the file of edits and the model; JSON files of another kind are passed over."""
    if not folder.is_dir():
        raise CorrigendaError(f"There is no folder {folder}.")
    groups: dict[tuple[str, str], list[Result]] = {}
    for path in sorted(folder.glob("*.json")):
        result = _result(path)
        if result is not None:
            groups.setdefault((result.edits, result.model), []).append(result)
    if not groups:
        raise CorrigendaError(f"{folder} holds no results: `corrigenda bench --out {folder}` makes them.")
    return groups


def _result(path: Path) -> Result | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorrigendaError(f"{path} cannot be read as JSON: {' '.join(str(error).split())}.") from None
    if not (isinstance(found, dict) and isinstance(found.get("after"), dict) and found["after"] and "method" in found):
        return None
    asked = found.get("asked", {})
    made = [found.get("device"), found.get("dtype"), f"{found.get('threads')} threads", *_versions(found)]
    return Result(
        str(found.get("name", path.stem)),
        str(found["method"]),
        Path(str(asked.get("edits", found.get("edits")) or "the project's own facts")).name,
        str(asked.get("model", "smollm2")),
        {int(count): mark for count, mark in found["after"].items()},
        found.get("settings", {}),
        ", ".join(str(part) for part in made if part) + f"; commit {str(found.get('commit'))[:12]}",
    )


def _versions(found: Mapping[str, Any]) -> list[str]:
    return [f"{name} {number}" for name, number in found.get("versions", {}).items() if number]
