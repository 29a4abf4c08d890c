"""Background prompts: text that is about no edit, used to calibrate the router."""

from __future__ import annotations

from importlib.resources import files


def background_prompts() -> list[str]:
    """Return the project's own background prompts, in file order."""
    text = (files("corrigenda.editing") / "data" / "background_prompts.txt").read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]
