"""The picture and the tables of methods beside each other, from `bench/results/cpu/field/` and `field-qaedit/`.

    python bench/field_report.py

Writes `docs/results/field.svg` and the tables of `docs/results/field.md` anew; needs matplotlib.
"""

from __future__ import annotations

import re

from record import ROOT, results_folder

from corrigenda.editing.comparison.plots import field_plot
from corrigenda.editing.comparison.results import read_results

PAGE, PICTURE = ROOT / "docs" / "results" / "field.md", ROOT / "docs" / "results" / "field.svg"
COLUMNS = {
    "free Rel": ("free_rel", "{:.2f}"),
    "free Gen": ("free_gen", "{:.2f}"),
    "Loc": ("loc", "{:.2f}"),
    "same subject": ("same_subject", "{:.2f}"),
    "Rel": ("rel", "{:.2f}"),
    "Gen": ("gen", "{:.2f}"),
    "s an edit": ("seconds_per_edit", "{:.2f}"),
    "bytes an edit": ("bytes_per_edit", "{:,.0f}"),
}


def standing(result):
    """What results are ordered by: after the most edits, the least of what an editor is asked for, then their sum."""
    marks = [result.last.get(name) or 0.0 for name in ("free_rel", "free_gen", "loc")]
    return min(marks), sum(marks)


def table(folder, results):
    """Markdown: each method after each number of edits, in the columns that were measured."""
    names = ", ".join(f"{folder}/{result.name}.json" for result in results)
    marks = [mark for result in results for mark in result.after.values()]
    columns = {name: kind for name, kind in COLUMNS.items() if any(mark.get(kind[0]) is not None for mark in marks)}
    lines = [f"<!-- figures: {names} -->", f"| | edits | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for result in results:
        for count, mark in sorted(result.after.items()):
            cells = ["" if mark.get(key) is None else form.format(mark[key]) for key, form in columns.values()]
            lines.append(f"| {result.name} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main():
    page = PAGE.read_text(encoding="utf-8")
    for folder in ("field", "field-qaedit"):
        ((_, results),) = read_results(results_folder() / folder).items()
        results = sorted(results, key=standing, reverse=True)
        if folder == "field":
            PICTURE.write_text(field_plot(results), encoding="utf-8")
        (before,) = re.finditer(rf"<!-- figures: {folder}/.*?-->\n(\|.*\n)+", page)
        page = page.replace(before[0], table(folder, results))
        print(f"{folder}: {len(results)} methods")
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
