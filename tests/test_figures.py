"""Every figure in a table of the documentation is one of the results file that the table names, as it is rounded there.

A table names its files in a comment before it, `<!-- figures: quality-zsre-memoir.json, ... -->`; they are of
`bench/results/cpu/`.
"""

import json
import re

import pytest
from tree import ROOT

RESULTS = ROOT / "bench" / "results" / "cpu"
NAMED = re.compile(r"<!-- figures: (.+?) -->\n((?:\|.*\n)+)")
NUMBER = re.compile(r"(?<![\w.,-])(\d[\d,]*\.\d+|\d{1,3}(?:,\d{3})+|\d+\.\d+)(?![\w.])")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def numbers(value):
    """All numbers of a JSON value."""
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, (int, float)):
        yield float(value)
    elif isinstance(value, dict):
        for each in value.values():
            yield from numbers(each)
    elif isinstance(value, list):
        for each in value:
            yield from numbers(each)


def agrees(text: str, known: list[float]) -> bool:
    """Whether a figure is one of `known`, rounded to its digits, in its own unit or a thousand times it."""
    places = len(text.partition(".")[2])
    figure = float(text.replace(",", ""))
    slack = 0.5000001 * 10**-places
    return any(abs(value * scale - figure) <= slack for value in known for scale in (1, 1000, 0.001, 100))


def tables():
    for page in PAGES:
        for number, match in enumerate(NAMED.finditer(page.read_text(encoding="utf-8"))):
            yield pytest.param(page, match[1], match[2], id=f"{page.relative_to(ROOT)}-{number}")


@pytest.mark.parametrize("page, files, table", list(tables()))
def test_a_table_says_what_its_results_say(page, files, table):
    known = []
    for name in files.split(","):
        known += numbers(json.loads((RESULTS / name.strip()).read_text()))
    wrong = [
        (row, figure)
        for row in table.splitlines()[2:]
        for figure in NUMBER.findall(row.partition("|")[2].partition("|")[2])
        if not agrees(figure, known)
    ]
    assert not wrong, wrong


def test_there_are_tables_to_check():
    assert len(list(tables())) >= 10


def test_a_wrong_figure_is_found():
    assert agrees("0.98", [0.9812]) and agrees("12.9", [12.94]) and agrees("956,528", [956528.0])
    assert not agrees("0.99", [0.9812]) and not agrees("12.8", [12.94]) and not agrees("956,529", [956528.0])
