"""Settings of a method for a model, tried on the half of the subjects that no figure is reported of.

    python bench/calibrate.py --edits zsre.jsonl --method memit --count 10 --try layer=8 first_layer=4 --try layer=14

Each `--try` is a set of settings beside the method's defaults. Of the first edit of each subject every second one is
taken, from the first on (`methods.py` reports the others). A set is judged by the harmonic mean of what is asked of an
editor: Rel, Gen, Loc, free Rel and free Gen; the result has every set that was tried. It goes on where it was stopped.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from record import edits_arguments, provenance, results_folder, seconds, write_json

from corrigenda.editing import EditedModel, Evaluator, load_edits
from corrigenda.editing.backbone.loading import load_base
from corrigenda.editing.methods.config import CONFIGS
from corrigenda.editing.methods.registry import config_for
from corrigenda.editing.methods.settings import settings_of

ASKED = ("rel", "gen", "loc", "free_rel", "free_gen")

SHOWN, LONGEST = 3, 12
"""Of how many edits the answer is shown, and its most tokens: a setting that breaks the model reads at once as one."""


def arguments():
    parser = edits_arguments(__doc__)
    parser.add_argument("--method", required=True, choices=list(CONFIGS))
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--try", dest="tried", nargs="*", action="append", required=True, metavar="NAME=VALUE")
    parser.add_argument("--results", type=Path, default=results_folder())
    return parser.parse_args()


def judged(scores):
    """The harmonic mean of the scores that the file has, each at least a thousandth."""
    known = [max(0.001, scores[name]) for name in ASKED if scores[name] is not None]
    return len(known) / sum(1 / value for value in known)


def main():
    args = arguments()
    torch.set_num_threads(1)
    path = args.results / f"calibration-{args.edits.stem}-{args.method}.json"
    rows = json.loads(path.read_text())["tried"] if path.exists() else []
    edits = load_edits(args.edits, unique_subject=True, limit=2 * args.count)[::2]
    model, tokenizer = load_base(args.model)
    for written in args.tried:
        settings = settings_of(args.method, written)
        if any(row["settings"] == settings and row["edits"] == args.count for row in rows):
            continue
        edited = EditedModel(model, tokenizer, config_for(args.method, **settings), template=args.template)
        start = seconds()
        edited.edit(edits, keep_unsolved=True)
        spent = seconds() - start
        scores = Evaluator(edited).score(edits).to_dict()
        for edit, answer in zip(edits, edited.generate_text([edit.prompt for edit in edits[:SHOWN]], LONGEST)):
            print(f"  {edit.prompt} -> {edit.target}: {answer!r}")
        edited.detach()
        row = {"settings": settings, "edits": args.count, "judged": round(judged(scores), 4)}
        row |= {name: scores[name] and round(scores[name], 4) for name in ASKED}
        rows.append({**row, "seconds_per_edit": round(spent / args.count, 3)})
        print(args.method, rows[-1], flush=True)
        best = max(rows, key=lambda row: (row["edits"], row["judged"]))
        described = {"edits": args.edits.name, "half": "settings", "template": args.template, "method": args.method}
        write_json(path, {**provenance(), **described, "best": best, "tried": rows})


if __name__ == "__main__":
    main()
