"""A page of results: one HTML file that needs nothing else, and its plots as SVG files beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ..shown import shown
from ..store.files import write_whole
from .plots import cost_plot, score_plot
from .results import Result, read_results

_COLUMNS = (
    ("free_rel", "free Rel", "{:.3f}"),
    ("free_gen", "free Gen", "{:.3f}"),
    ("rel", "Rel", "{:.3f}"),
    ("gen", "Gen", "{:.3f}"),
    ("loc", "Loc", "{:.3f}"),
    ("same_subject", "same subject", "{:.3f}"),
    ("held", "held", "{:.3f}"),
    ("seconds_per_edit", "s an edit", "{:.3g}"),
    ("bytes_per_edit", "bytes an edit", "{:,.0f}"),
    ("peak_megabytes", "peak MB", "{:,.0f}"),
)
_EXPLAINED = (
    "free Rel, free Gen: greedy answers that are the target, to the prompt and to other wordings of it. Rel, Gen: the "
    "share of the target's tokens that are predicted, given the true ones before. Loc: the share of unrelated answers' "
    "tokens that stay. Same subject: other questions about an edited subject that keep their answer. Held: edits whose "
    "own prompt got the target right after they were written. Seconds are those of writing, with what is prepared "
    "before the first edit. Peak MB is the process's most memory, or on a GPU that of tensors."
)
_STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #8884; text-align: right; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.5rem 0; background: #fff; border-radius: .4rem; overflow-x: auto; }
svg { max-width: 100%; height: auto; }
.scroll { overflow-x: auto; }
summary { cursor: pointer; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85em; }
"""


def write_report(folder: Path, path: Path) -> list[Path]:
    """Write the page of a folder's results to `path`; the plots' files, which lie beside it."""
    parts, pictures = [], []
    for (edits, model), results in read_results(folder).items():
        parts.append(f"<h2>{_text(edits)}, {_text(model)}</h2>")
        most = max(max(result.after) for result in results)
        for kind, drawn in (
            ("scores", score_plot(results, f"What {most:,} edits leave of each: {edits}")),
            ("costs", cost_plot(results, f"What an edit costs: {edits}")),
        ):
            picture = path.parent / f"{path.stem}-{Path(edits).stem}-{Path(model).name}-{kind}.svg"
            write_whole(picture, drawn)
            pictures.append(picture)
            parts.append(f"<figure>{drawn}</figure>")
        parts.append(_table(results))
        parts += [_details(result) for result in results]
    page = (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Methods compared</title>\n<style>{_STYLE}</style>\n<body>\n<h1>Methods compared</h1>\n"
        f"<p>{_EXPLAINED}</p>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )
    write_whole(path, page)
    return pictures


def _text(value: object) -> str:
    return escape(shown(str(value)))


def _table(results: Sequence[Result]) -> str:
    """All runs after each number of edits."""
    columns = [each for each in _COLUMNS if any(result.values(each[0]) for result in results)]
    head = "".join(f"<th>{name}</th>" for _, name, _ in columns)
    lines = []
    for result in results:
        for count, mark in sorted(result.after.items()):
            cells = "".join(
                f"<td>{form.format(mark[key]) if mark.get(key) is not None else ''}</td>" for key, _, form in columns
            )
            lines.append(f"<tr><td>{_text(result.name)}</td><td>{count:,}</td>{cells}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr><th>run</th><th>edits</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _details(result: Result) -> str:
    settings = json.dumps(dict(result.settings), indent=1, ensure_ascii=False)
    return (
        f"<details><summary>{_text(result.name)}: settings</summary><p>{_text(result.made_with)}</p>"
        f"<pre>{escape(settings)}</pre></details>"
    )
