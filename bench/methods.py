"""One method on one benchmark file: scores after 1, 10, 100, ... edits, seconds and bytes an edit, as JSON.

    python bench/methods.py --edits zsre.jsonl --method grace --at 1 10 100
    python bench/methods.py --edits counterfact.jsonl --template '{prompt}' --method rag --at 1 10 100

Of the first edit of each subject, in file order, every second one is taken, from the second on: settings that depend on
the model (`defaults.py` of a method) were chosen on the others (`--half settings`). Seconds are of the thread, so that
other work on the machine hardly counts; bytes are those of an edit's record, without its texts.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from record import edits_arguments, provenance, results_folder, seconds, write_json

from corrigenda.editing import EditedModel, Evaluator, load_edits
from corrigenda.editing.methods.config import CONFIGS
from corrigenda.editing.methods.registry import config_for
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


def counting_bytes(method):
    """A list to which every record that the method writes adds its bytes."""
    found, apply = [], method.apply

    def counted(records):
        found.extend(
            sum(tensor.nbytes for tensor in record.tensors.values()) + record.fingerprint.nbytes for record in records
        )
        apply(records)

    method.apply = counted
    return found


def main():
    args = arguments()
    torch.set_num_threads(1)
    config = config_for(args.method, **settings_of(args.method, args.set))
    half = 1 if args.half == "reported" else 0
    edits = load_edits(args.edits, unique_subject=True, limit=2 * max(args.at))[half::2]
    edited = EditedModel.from_pretrained(args.model, config=config, template=args.template)
    sizes, spent, done, marks = counting_bytes(edited.method), 0.0, 0, {}
    evaluator = Evaluator(edited)
    result = {
        **provenance(),
        "edits": args.edits.name,
        "half": args.half,
        "template": args.template,
        "method": args.method,
        "settings": edited.config.to_dict(),
        "threads": 1,
    }
    for stop in sorted(args.at):
        start, begun = seconds(), time.perf_counter()
        written = edited.edit(edits[done:stop], keep_unsolved=True)
        spent += seconds() - start
        done = stop
        scores = evaluator.score(edits[:stop]).to_dict()
        marks[str(stop)] = {
            **scores,
            "seconds_per_edit": round(spent / stop, 3),
            "bytes_per_edit": round(sum(sizes) / stop),
            "held": sum(bool(one.held) for one in written) / max(1, len(written)),
        }
        name = args.name or f"methods-{args.edits.stem}-{args.method}"
        write_json(args.results / f"{name}.json", {**result, "after": marks})
        rounded = {key: round(value, 3) for key, value in marks[str(stop)].items() if value is not None}
        print(args.method, stop, rounded, f"{time.perf_counter() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
