"""Plots of results: scores over the number of edits, and what an edit costs."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from typing import Any

from ..errors import CorrigendaError
from .results import Result

# Okabe and Ito's, which all eyes tell apart; marks and dashes tell runs apart without colour.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
_MARKS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1)))

SCORES = (
    ("free_gen", "Free generation, other words"),
    ("free_rel", "Free generation, as written"),
    ("loc", "Unrelated answers kept (Loc)"),
    ("same_subject", "Same subject, other question: kept"),
)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise CorrigendaError("Plots need matplotlib: run `pip install 'corrigenda[report]'`.") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as pyplot

    return pyplot


def score_plot(results: Sequence[Result], title: str) -> str:
    """SVG of the scores over the number of edits, one panel each; a score that no run has is left out."""
    pyplot = _pyplot()
    panels = [(measure, name) for measure, name in SCORES if any(result.values(measure) for result in results)]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(5.2 * columns + 2, 3.4 * rows), squeeze=False, sharex=True)
    counts = sorted({count for result in results for count in result.after})
    for (measure, name), axis in zip(panels, axes.flat):
        styles = zip(itertools.cycle(_COLOURS), itertools.cycle(_MARKS), itertools.cycle(_DASHES))
        for result, (colour, mark, dash) in zip(results, styles):
            values = result.values(measure) or {counts[0]: float("nan")}  # named all the same
            axis.plot(
                list(values),
                list(values.values()),
                color=colour,
                marker=mark,
                linestyle=dash,
                label=result.name,
                alpha=0.9,
            )
        axis.set(title=name, xscale="log", ylim=(-0.03, 1.03), ylabel="share (1 is best)")
        axis.set_xticks(counts, [f"{count:,}" for count in counts])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("edits written")
    figure.suptitle(title)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center right", frameon=False)
    figure.tight_layout(rect=(0, 0, 1 - 1.7 / figure.get_figwidth(), 1))
    return _svg(pyplot, figure)


def cost_plot(results: Sequence[Result], title: str) -> str:
    """SVG of edits a second and bytes an edit, as bars on logarithmic axes, the cheapest on top."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 0.35 * len(results) + 1.6))
    for axis, measure, name, invert in (
        (axes[0], "seconds_per_edit", "edits a second (more is better)", True),
        (axes[1], "bytes_per_edit", "bytes an edit (fewer are better)", False),
    ):
        found = [(result.name, result.last[measure]) for result in results if result.last.get(measure)]
        found = sorted(((name, 1 / value if invert else value) for name, value in found), key=lambda one: one[1])
        if not invert:
            found.reverse()
        bars = axis.barh([name for name, _ in found], [value for _, value in found], color=_COLOURS[0])
        axis.bar_label(bars, [_short(value) for _, value in found], padding=3)
        axis.set(xscale="log", xlabel=name)
        axis.margins(x=0.25)
        axis.grid(axis="x", alpha=0.3)
    figure.suptitle(title)
    figure.tight_layout()
    return _svg(pyplot, figure)


def _short(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _svg(pyplot: Any, figure: Any) -> str:
    """The figure as SVG that is the same for the same figures; text stays text."""
    page = io.StringIO()
    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": "corrigenda"}):
        figure.savefig(page, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    text = page.getvalue()
    return text[text.index("<svg") :]
