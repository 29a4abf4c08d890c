"""Where the time of an *associative* edit goes, phase by phase, with the settings of before and with the defaults.

    OMP_NUM_THREADS=1 python bench/edit_phases.py --edits zsre.jsonl

One thread, thread seconds, each phase less those within it; the two settings take turns, and the least of the rounds
counts. Every round writes the same edits into a fresh store.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from pathlib import Path

import torch
from record import edits_arguments, provenance, results_folder, write_json

from corrigenda.editing import AssociativeConfig, EditedModel, load_base, load_edits
from corrigenda.editing.backbone import suffix
from corrigenda.editing.edits.prompts import PromptFormat
from corrigenda.editing.methods.associative import method as associative
from corrigenda.editing.methods.associative.descent import Descent
from corrigenda.editing.methods.associative.head_start import HeadStart
from corrigenda.editing.methods.associative.problem import Problem, SideBySide
from corrigenda.editing.model.batch import BatchWriter
from corrigenda.editing.store.store import EditStore

SETTINGS = {
    "before": {
        "start": "zero",
        "learning_rate": 0.5,
        "contexts": 4,
        "retries": 0,
        "formats": "own",
        "router": "tokens",
    },
    "one format": {"formats": "own", "router": "tokens"},
    "defaults": {},
}
PHASES = (
    (PromptFormat, "encode_in_context", "tokenising"),
    (associative.Associative, "fingerprints", "tokenising"),
    (associative.Associative, "features", "layers below the memory"),
    (Problem, "__init__", "keys and reads"),
    (HeadStart, "__call__", "start"),
    (suffix.Suffix, "__init__", "prompts above the memory"),
    (suffix.Suffix, "select", "edits that are done taken out"),
    (SideBySide, "token_losses", "steps, forward"),
    (torch.Tensor, "backward", "steps, backward"),
    (Descent, "step", "Adam"),
    (associative.Associative, "_strengthen", "gain and whether it holds"),
    (associative.Associative, "_see_what_holds", "gain and whether it holds"),
    (associative.Associative, "apply", "memory and router"),
    (EditStore, "append", "ledger"),
    (BatchWriter, "write", "the rest"),
)
WITHIN_GAIN = {
    "steps, forward": "gain and whether it holds",
    "edits that are done taken out": "gain and whether it holds",
}
"""Phases that belong to another when they run within it."""


class Clock:
    """Thread seconds by phase."""

    def __init__(self):
        self.seconds = defaultdict(float)
        self._open = []

    def timed(self, inner, phase):
        def run(*arguments, **options):
            names = [name for name, _ in self._open]
            name = WITHIN_GAIN[phase] if phase in WITHIN_GAIN and WITHIN_GAIN[phase] in names else phase
            self._open.append((name, 0.0))
            start = time.thread_time()
            try:
                return inner(*arguments, **options)
            finally:
                took = time.thread_time() - start
                _, within = self._open.pop()
                self.seconds[name] += took - within
                if self._open:
                    outer, so_far = self._open[-1]
                    self._open[-1] = outer, so_far + took

        return run

    @contextlib.contextmanager
    def over(self, phases):
        inner = [(owner, name, owner.__dict__[name]) for owner, name, _ in phases if name in owner.__dict__]
        for owner, name, phase in phases:
            setattr(owner, name, self.timed(getattr(owner, name), phase))
        try:
            yield self
        finally:
            for owner, name, _ in phases:
                if name in owner.__dict__:
                    delattr(owner, name)
            for owner, name, function in inner:
                setattr(owner, name, function)


def round_of(model, tokenizer, edits, template, settings):
    config = AssociativeConfig(**settings, background_prompts=8)  # how many an edit's cost does not depend on
    edited = EditedModel.wrap(model, tokenizer, config, template=template)
    edited.method.prepare()
    edited.edit(edits[:1])
    with Clock().over(PHASES) as clock:
        written = edited.edit(edits[1:])
    edited.detach()
    count = len(edits) - 1
    return {name: 1000 * value / count for name, value in clock.seconds.items()}, sum(w.steps for w in written) / count


def main():
    parser = edits_arguments(__doc__)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=results_folder() / "edit-phases.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_base(args.model)
    edits = load_edits(args.edits, unique_subject=True, limit=args.count + 1)
    best, steps = {}, {}
    for _ in range(args.rounds):
        for kind, settings in SETTINGS.items():
            found, steps[kind] = round_of(model, tokenizer, edits, args.template, settings)
            if kind not in best or sum(found.values()) < sum(best[kind].values()):
                best[kind] = found
    rows = {
        kind: {
            "milliseconds_per_edit": round(sum(found.values()), 1),
            "mean_steps": round(steps[kind], 2),
            "phases": {name: round(value, 2) for name, value in sorted(found.items(), key=lambda row: -row[1])},
        }
        for kind, found in best.items()
    }
    for kind, row in rows.items():
        print(kind, row, flush=True)
    result = {**provenance(), "threads": 1, "edits": args.edits.name, "count": args.count, "rounds": args.rounds}
    write_json(args.results, {**result, "settings": SETTINGS, "rows": rows})


if __name__ == "__main__":
    main()
