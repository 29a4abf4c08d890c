"""One method on one benchmark file: scores after 1, 10, 100, ... edits, seconds and bytes an edit, as JSON.

    python bench/methods.py --edits zsre.jsonl --method grace --at 1 10 100
    python bench/methods.py --edits counterfact.jsonl --template '{prompt}' --method rag --at 1 10 100

Of the first edit of each subject, in file order, every second one is taken, from the second on: settings that depend on
the model (`defaults.py` of a method) were chosen on the others (`--half settings`). Seconds are of the thread, so that
other work on the machine hardly counts; bytes are those of an edit's record, without its texts. `corrigenda bench` does
the same on a file of one's own.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from record import edits_arguments, provenance, results_folder, write_json

from corrigenda.editing import load_edits
from corrigenda.editing.backbone.loading import load_base
from corrigenda.editing.comparison.plan import Plan, Run
from corrigenda.editing.comparison.runs import write_run
from corrigenda.editing.methods.config import CONFIGS
from corrigenda.editing.methods.settings import settings_of


def arguments():
    parser = edits_arguments(__doc__)
    parser.add_argument("--at", type=int, nargs="+", default=[1, 10, 100], help="numbers of edits to score at")
    parser.add_argument("--method", required=True, choices=list(CONFIGS))
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the method")
    parser.add_argument("--half", choices=["reported", "settings"], default="reported")
    parser.add_argument("--name", help="name of the result file")
    parser.add_argument("--results", type=Path, default=results_folder())
    return parser.parse_args()


def main():
    args = arguments()
    torch.set_num_threads(1)
    run = Run(args.name or f"methods-{args.edits.stem}-{args.method}", args.method, settings_of(args.method, args.set))
    plan = Plan(args.model, args.edits, sorted(args.at), [run], args.template)
    half = 1 if args.half == "reported" else 0
    edits = load_edits(args.edits, unique_subject=True, limit=2 * max(args.at))[half::2]
    path = args.results / f"{run.name}.json"
    args.results.mkdir(parents=True, exist_ok=True)
    write_run(plan, run, edits, path, load_base(args.model), print)
    result = {**json.loads(path.read_text()), **provenance(), "edits": args.edits.name, "half": args.half}
    del result["asked"]  # it has a path of this machine
    write_json(path, {**result, "template": args.template})


if __name__ == "__main__":
    main()
