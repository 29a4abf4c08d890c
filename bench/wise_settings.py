"""WISE's settings for a model, tried on several files at once: the half of the subjects that no figure is reported of.

    python bench/wise_settings.py --edits zsre.jsonl counterfact.jsonl qaedit.jsonl --count 60 --try --try steps=12

Each `--try` is a set of settings beside WISE-Merge's defaults, all edits of a file in one shard. A stream is written
once and scored at several shares of the distance from which the memory answers (`act_ratio`; 0: it always does, which
shows what was learnt). A set at a share is judged by the worst file's harmonic mean of Rel, Gen and Loc: what is best
on one file alone had been chosen before, and lost .07 of Rel and .03 of Loc on another. It goes on where it was
stopped.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from record import edits_arguments, provenance, results_folder, seconds, write_json

from corrigenda.editing import EditedModel, Evaluator, load_edits
from corrigenda.editing.backbone.loading import load_base
from corrigenda.editing.methods.registry import config_for
from corrigenda.editing.methods.settings import settings_of

RATIOS = (0.0, 0.8, 0.9, 1.0, 1.05, 1.1, 1.15, 1.2, 1.27, 1.35, 1.45, 1.6)
KINDS = {"prompt": "rel", "rephrase": "gen", "locality": "loc"}


def arguments():
    parser = edits_arguments(__doc__, several=True)
    parser.add_argument("--count", type=int, default=60, help="edits of each file")
    parser.add_argument("--half", choices=["settings", "reported"], default="settings")
    parser.add_argument("--try", dest="tried", nargs="*", action="append", required=True, metavar="NAME=VALUE")
    parser.add_argument("--results", type=Path, default=results_folder() / "wise-settings.json")
    return parser.parse_args()


def harmonic(scores):
    known = [max(0.001, scores[name]) for name in KINDS.values() if scores[name] is not None]
    return len(known) / sum(1 / value for value in known)


def scored(edited, edits, unedited):
    """At each share: Rel, Gen and Loc, and how many prompts, rephrasings and others the memory answers.

    unedited: Rel and Gen of each edit without the memory. All are asked once, always from the memory; what a threshold
    would have left to the base model has the base model's score.
    """
    memory = edited.method.memory
    memory.act_ratio = 1.0
    threshold = memory.threshold
    memory.act_ratio = 0.0
    evaluator = Evaluator(edited, free=False)
    evaluator.score(edits)
    distance = {(asked["kind"], asked["about"]): asked["score"] for asked in evaluator.provenance}
    rows = {}
    for ratio in RATIOS:
        row = {}
        for kind, name in KINDS.items():
            reached = [distance.get((kind, number), -1.0) >= ratio * threshold for number in range(len(edits))]
            pairs = zip(evaluator.by_edit, unedited, reached, strict=True)
            values = [on[name] if hit else off.get(name, 1.0) for on, off, hit in pairs if name in on]
            row[name] = round(sum(values) / len(values), 4) if values else None
            row[f"{name} from the memory"] = round(sum(reached) / len(edits), 4)
        rows[str(ratio)] = row
    return rows


def best(rows):
    """The settings and the share whose worst file is best, of those that were tried on every file."""
    rows = [row for row in rows if row["half"] == "settings"]
    files = {row["file"] for row in rows}
    by_settings = {}
    for row in rows:
        by_settings.setdefault(json.dumps(row["settings"], sort_keys=True), []).append(row)
    judged = [
        (min(harmonic(row["scores"][str(ratio)]) for row in of_one), settings, ratio)
        for settings, of_one in by_settings.items()
        if {row["file"] for row in of_one} == files
        for ratio in RATIOS[1:]
    ]
    if not judged:
        return None
    worst, settings, ratio = max(judged)
    return {"settings": json.loads(settings), "act_ratio": ratio, "worst file": round(worst, 4)}


def main():
    args = arguments()
    torch.set_num_threads(1)
    rows = json.loads(args.results.read_text())["tried"] if args.results.exists() else []
    model, tokenizer = load_base(args.model)
    half = 1 if args.half == "reported" else 0
    for written in args.tried:
        settings = settings_of("wise-merge", written)
        for path in args.edits:
            named = {"file": path.name, "half": args.half, "edits": args.count, "settings": settings}
            if any(all(row[name] == value for name, value in named.items()) for row in rows):
                continue
            edits = load_edits(path, unique_subject=True, limit=2 * args.count)[half::2]
            edits = [replace(e, rephrases=e.rephrases[:1], localities=e.localities[:1]) for e in edits]
            template = "{prompt}" if path.stem == "counterfact" else args.template
            edited = EditedModel(model, tokenizer, config_for("wise-merge", **settings), template=template)
            evaluator = Evaluator(edited, free=False)
            evaluator.score([replace(edit, localities=()) for edit in edits])
            start = seconds()
            edited.edit(edits, keep_unsolved=True)
            spent = seconds() - start
            rows.append(
                {
                    **named,
                    "seconds_per_edit": round(spent / args.count, 3),
                    "scores": scored(edited, edits, evaluator.by_edit),
                }
            )
            edited.detach()
            print(json.dumps(rows[-1]), flush=True)
            write_json(args.results, {**provenance(), "template": args.template, "best": best(rows), "tried": rows})


if __name__ == "__main__":
    main()
