"""Does an edit cost more when many are stored? One stream of generated facts, at 100, 1,000 and 10,000 edits.

    OMP_NUM_THREADS=1 python bench/growth.py

The stream is there once for each length, as far as that, with its own ledger on the disk. What lies before the mark
has rows of the usual size that nobody solved, which changes nothing in what solving costs; what is timed is solved in
truth, 16 edits at a time, the lengths taking turns. Thread time, the least of the rounds, of the whole edit: solving,
memory, router, ledger. Beside it one decision for a prompt, what memory and router take up, and the ledger.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

import torch
from made_up import random_rows
from plot import chart, write_charts
from record import ROOT, provenance, results_folder, seconds, write_json
from store import QUESTION, made_up_edits
from timing import thread_seconds

from corrigenda.editing import EditedModel
from corrigenda.editing.backbone.loading import load_base

BATCH = 16


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--results", type=Path, default=results_folder() / "growth.json")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "results" / "growth.svg")
    return parser.parse_args()


class Stream:
    """The stream as far as `size` edits, in a folder; `write` goes on with edits that are solved in truth."""

    def __init__(self, args, size, folder):
        self.size, self.folder = size, folder
        model, tokenizer = load_base(args.model)
        self.edited = EditedModel.wrap(model, tokenizer, template=QUESTION)
        edits = made_up_edits(size + BATCH * (args.rounds + 1))
        with random_rows(self.edited):
            self.edited.edit(itertools.islice(edits, size), store=folder)
        # The same edits for every length: what solving costs depends on them.
        last = list(made_up_edits(max(args.sizes) + BATCH * (args.rounds + 1)))[-BATCH * (args.rounds + 1) :]
        self.rest = [last[start : start + BATCH] for start in range(0, len(last), BATCH)]
        self.asked = [self.edited.prompts.encode(self.edited.prompts.wrap(edit.prompt)) for edit in last[:BATCH]]

    def write(self):
        """Thread seconds an edit of the next batch."""
        edits = self.rest.pop(0)
        start = seconds()
        self.edited.edit(edits)
        return (seconds() - start) / len(edits)

    def decide(self):
        """Thread seconds of one decision."""
        return min(thread_seconds(self.edited.method.decide, [ids], least=5, budget=0.02) for ids in self.asked)

    def row(self, each, decision):
        held = sum(tensor.nbytes for tensor in self.edited.method.state().values())
        stored = len(self.edited.edits)
        ledger = sum(file.stat().st_size for file in self.folder.iterdir())
        return {
            "edits_per_second": round(1 / each, 3),
            "seconds_per_edit": round(each, 5),
            "decision_ms": round(1e3 * decision, 4),
            "memory_bytes_per_edit": round(held / stored),
            "ledger_bytes_per_edit": round(ledger / stored),
        }


def main():
    args = arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        streams = [Stream(args, size, Path(scratch) / str(size)) for size in args.sizes]
        for stream in streams:  # what is only done once
            stream.write()
        times, decisions = ({stream.size: [] for stream in streams} for _ in range(2))
        for turn in range(args.rounds):
            for stream in streams[:: 1 if turn % 2 else -1]:
                times[stream.size].append(stream.write())
                decisions[stream.size].append(stream.decide())
        rows = {s.size: s.row(min(times[s.size]), min(decisions[s.size])) for s in streams}
    first, last = rows[args.sizes[0]], rows[args.sizes[-1]]
    growth = {name: round(last[name] / first[name] - 1, 4) for name in first}
    for name, row in {**rows, "growth": growth}.items():
        print(name, row, flush=True)
    result = {**provenance(), "threads": 1, "rounds": args.rounds, "batch": BATCH, "edits": rows, "growth": growth}
    write_json(args.results, result)
    draw(rows, args.plot)


def draw(rows, path):
    def line(name, scale=1.0):
        return {size: scale * row[name] for size, row in rows.items()}

    stored = "edits stored"
    charts = [
        chart("edits a second", {"": line("edits_per_second")}, stored),
        chart("a decision, ms", {"": line("decision_ms")}, stored),
        chart("memory and router, kB an edit", {"": line("memory_bytes_per_edit", 1e-3)}, stored),
        chart("ledger, kB an edit", {"": line("ledger_bytes_per_edit", 1e-3)}, stored),
    ]
    write_charts(path, charts)


if __name__ == "__main__":
    main()
