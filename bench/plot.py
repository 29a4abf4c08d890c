"""Small line charts as SVG, for results that a table shows badly; nothing that a reader must install."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 220, 58, 26, 34, 40
COLOURS = ("#1f5fa8", "#c2571a", "#3a7d44", "#7b4aa0")


def chart(title, lines, x_label):
    """SVG elements of one chart: `lines` are `{label: {x: y}}`, x on a logarithmic axis, y from 0."""
    xs = sorted({x for points in lines.values() for x in points})
    most = _round_up(max(y for points in lines.values() for y in points.values()))
    low, high = math.log10(xs[0]), math.log10(xs[-1])

    def place(x, y):
        across = LEFT + (math.log10(x) - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - y / most * (HEIGHT - TOP - BOTTOM)

    parts = [_text(WIDTH / 2, 16, title, "middle", 12, "bold")]
    for step in range(5):
        y = most * step / 4
        _, down = place(xs[0], y)
        parts.append(f'<path d="M{LEFT} {down:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 6, down + 4, f"{y:g}", "end"))
    for x in xs:
        across, _ = place(x, 0)
        parts.append(_text(across, HEIGHT - BOTTOM + 16, f"{x:,}", "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "middle"))
    for number, ((label, points), colour) in enumerate(zip(lines.items(), COLOURS)):
        places = [place(x, points[x]) for x in sorted(points)]
        route = " ".join(f"{across:.1f},{down:.1f}" for across, down in places)
        parts.append(f'<polyline points="{route}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3" fill="{colour}"/>' for across, down in places]
        if len(lines) > 1:
            parts.append(_text(LEFT + 6, TOP + 12 + 14 * number, label, "start", colour=colour))
    return parts


def write_charts(path, charts, columns=2):
    """Charts, each a list of elements, side by side and below one another, in one SVG file."""
    rows = -(-len(charts) // columns)
    whole = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{columns * WIDTH}" height="{rows * HEIGHT}" '
        'font-family="sans-serif">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, parts in enumerate(charts):
        across, down = number % columns * WIDTH, number // columns * HEIGHT
        whole += [f'<g transform="translate({across} {down})">', *parts, "</g>"]
    Path(path).write_text("\n".join([*whole, "</svg>"]) + "\n", encoding="utf-8")


def _round_up(value):
    """The next of 1, 2, 4, 5, 8, 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 5, 8, 10) if step * power >= value)


def _text(x, y, text, anchor, size=10, weight="normal", colour="#333"):
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
        f'fill="{colour}">{escape(text)}</text>'
    )
