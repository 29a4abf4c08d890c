"""The picture of `corrigenda route --plot`: how near requests are to being answered by an edit, and which are."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from ..errors import CorrigendaError
from ..model.route import Routed

_BINS = 40  # even: 0 is an edge, so no bar holds answered and unanswered requests


def check_plot(path: Path) -> None:
    """Raise where the picture could not be drawn, before anything is computed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise CorrigendaError("--plot draws with matplotlib, which is not installed: pip install 'corrigenda[report]'.")
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise CorrigendaError(f"The picture must be a .png, .pdf or .svg file, not {path}.")
    if not path.resolve().parent.is_dir():
        raise CorrigendaError(f"The folder of the picture {path} does not exist.")


def draw_margins(found: Sequence[Routed], path: Path) -> None:
    """Write a histogram of the margins of all requests that are near an edit: below 0 the base model answers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    near = [one for one in found if one.nearest is not None]
    answered = [one.margin for one in near if one.id is not None]
    left = [one.margin for one in near if one.id is None]
    reach = max([abs(one.margin) for one in near], default=1.0) or 1.0
    edges = [reach * (2 * i / _BINS - 1) for i in range(_BINS + 1)]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.hist(
        [left, answered],
        bins=edges,
        stacked=True,
        color=["#8a8f98", "#2f7d4f"],
        label=[f"base model answers ({len(left)})", f"an edit answers ({len(answered)})"],
    )
    axes.axvline(0, color="black", linewidth=1)
    axes.set_xlabel("margin of the nearest edit")
    axes.set_ylabel("requests")
    axes.set_title(f"{len(found)} requests, {len(found) - len(near)} of them near no edit")
    axes.legend(loc="best")
    figure.savefig(path, dpi=120)
