"""Quality of a stream of edits on a benchmark file: scores at several lengths, resumable, results as JSON.

    python bench/quality.py --edits zsre.jsonl --at 100 500 1000
    python bench/quality.py --edits zsre.jsonl --at 100 300 --method memoir --set layer=24

The stream is saved at every mark (and every `--save-every` edits) under `--work`; a run that was stopped goes on from
there. Edits are the first of each subject, in file order.
"""

from __future__ import annotations

import json
import shutil
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
    parser.add_argument("--at", type=int, nargs="+", required=True, help="numbers of edits to score at")
    parser.add_argument("--method", default="associative", choices=list(CONFIGS))
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the method")
    parser.add_argument("--name", help="name of the result file")
    parser.add_argument("--results", type=Path, default=results_folder())
    parser.add_argument("--work", type=Path, default=Path("bench-work"), help="where unfinished streams are kept")
    parser.add_argument("--save-every", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-free", action="store_true", help="teacher-forced scores only")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--device", default=None)
    return parser.parse_args()


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    config = config_for(args.method, **settings_of(args.method, args.set))
    edits = load_edits(args.edits, unique_subject=True, limit=max(args.at))
    name = args.name or f"quality-{args.edits.stem}-{args.method}"
    work = args.work / name
    saved = max((int(path.name) for path in work.glob("[0-9]*") if path.name.isdigit()), default=0)
    if saved:
        edited = EditedModel.from_pretrained(args.model, edits=work / str(saved), dtype=args.dtype, device=args.device)
    else:
        edited = EditedModel.from_pretrained(
            args.model, config=config, template=args.template, dtype=args.dtype, device=args.device
        )
    done_file = work / "so_far.json"
    so_far = json.loads(done_file.read_text()) if done_file.exists() else {"seconds": 0.0, "steps": 0, "marks": {}}
    evaluator = Evaluator(edited, free=not args.no_free)
    result = {
        **provenance(),
        "edits": args.edits.name,
        "targets": "target_new of the file",
        "unique_subject": True,
        "template": args.template,
        "method": args.method,
        "settings": edited.config.to_dict(),
        "threads": args.threads,
    }
    stops = sorted({*args.at, *range(args.save_every, max(args.at), args.save_every)})
    for stop in stops:
        if stop > len(edits) or (stop < saved) or str(stop) in so_far["marks"]:
            continue
        if stop > saved:
            start = seconds()
            written = edited.edit(edits[:stop], resume=True)
            so_far["seconds"] += seconds() - start
            so_far["steps"] += sum(edit.steps for edit in written)
            edited.save_pretrained(work / str(stop))
            done_file.write_text(json.dumps(so_far))
            if saved:
                shutil.rmtree(work / str(saved), ignore_errors=True)
            saved = stop
        if stop in args.at:
            start = time.perf_counter()
            scores = evaluator.score(edits[:stop]).to_dict()
            so_far["marks"][str(stop)] = {
                **scores,
                "editing_seconds": round(so_far["seconds"], 2),
                "mean_steps": round(so_far["steps"] / stop, 2),
                "evaluation_seconds": round(time.perf_counter() - start, 1),
                "threshold": edited.method.router.threshold,
            }
            done_file.write_text(json.dumps(so_far))
            write_json(args.results / f"{name}.json", {**result, "after_the_whole_stream": so_far["marks"]})
            print(
                stop,
                {k: round(v, 4) for k, v in so_far["marks"][str(stop)].items() if v is not None},
                flush=True,
            )


if __name__ == "__main__":
    main()
