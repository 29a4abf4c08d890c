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

_SHORT = (
    ("free_rel", "Answers the edit"),
    ("free_gen", "... in other words"),
    ("loc", "Leaves others alone"),
    ("same_subject", "... of the same subject"),
)
_RAMP = ("#d0e3f2", "#6baed6", "#08306b")
"""Few edits to many; they survive greyscale."""


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
    figure, axes = pyplot.subplots(rows, columns, figsize=(5.2 * columns, 3.4 * rows), squeeze=False, sharex=True)
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
    figure.tight_layout()
    figure.legend(handles, labels, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)  # names may be long
    return _svg(pyplot, figure)


def field_plot(results: Sequence[Result]) -> str:
    """SVG of many methods: a row each, in the order given, a panel a score; the more edits, the larger and darker."""
    pyplot = _pyplot()
    panels = [(measure, name) for measure, name in _SHORT if any(result.values(measure) for result in results)]
    counts = sorted({count for result in results for count in result.after})
    marks: dict[int, dict[str, Any]] = {
        count: {
            "marker": "o",
            "markersize": 4.5 + 2.5 * place,
            "color": _RAMP[max(0, len(_RAMP) - len(counts) + place)],
            "markeredgecolor": "black",
            "markeredgewidth": 0.6,
            "zorder": 3 - place / len(counts),  # a small one shows upon a large one
        }
        for place, count in enumerate(counts)
    }
    size = (2.4 * len(panels) + 1.6, 0.3 * len(results) + 1.5)
    figure, axes = pyplot.subplots(1, len(panels), figsize=size, squeeze=False, sharey=True)
    for (measure, name), axis in zip(panels, axes.flat):
        for row, result in enumerate(results):
            values = result.values(measure)
            axis.plot(list(values.values()), [row] * len(values), color=_RAMP[0], linewidth=2, zorder=1)
            for count, value in values.items():
                axis.plot([value], [row], **marks[count])
        axis.set(title=name, xlim=(-0.06, 1.06), ylim=(len(results) - 0.5, -0.5))
        axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axis.set_yticks(range(len(results)), [result.name for result in results])
        axis.tick_params(axis="y", length=0)
        axis.grid(alpha=0.3)
    figure.supxlabel("share of questions (1 is best)", fontsize="medium")
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / size[1]))
    keys = [pyplot.Line2D([], [], linestyle="", **mark) for mark in marks.values()]
    labels = [f"{count:,} edit{'s' if count > 1 else ''}" for count in counts]
    figure.legend(keys, labels, loc="upper center", ncols=len(counts), frameon=False)
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
        axis.xaxis.set_minor_formatter("")  # within a decade they would run into each other
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
        figure.savefig(page, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    text = page.getvalue()
    return text[text.index("<svg") :]
