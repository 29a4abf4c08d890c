"""Where WISE's thresholds are taken from: of a stream that is written, the edits' memories found, and misfires.

    OMP_NUM_THREADS=1 python bench/wise_thresholds.py --edits zsre.jsonl --edits-dir DIR

DIR is a folder with WISE-Retrieve's shards, as `quality.py` leaves one. Each prompt, first rephrasing and locality
prompt is routed with thresholds from the least distance of a shard's edits ("edits", as published) and from background
prompts ("background"), at several shares of either (`act_ratio`).
"""

from __future__ import annotations

from pathlib import Path

import torch
from record import edits_arguments, provenance, results_folder, write_json

from corrigenda.editing import EditedModel, load_edits

RATIOS = {
    "edits": (1.0, 1.22, 1.4, 1.6, 1.8, 2.0, 2.1, 2.2, 2.5),
    "background": (0.9, 1.0, 1.1, 1.2, 1.27, 1.3, 1.4, 1.5, 1.6, 1.8),
}


def arguments():
    parser = edits_arguments(__doc__)
    parser.add_argument("--edits-dir", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=results_folder() / "wise-thresholds-zsre.json")
    return parser.parse_args()


def distances(method, prompts):
    """`[shards, prompts]`, in pieces: a pass keeps what every shard adds at every token."""
    return torch.cat([method.distances(prompts[start : start + 50]) for start in range(0, len(prompts), 50)], 1)


def main():
    args = arguments()
    torch.set_num_threads(1)
    edited = EditedModel.from_pretrained(args.model, edits=args.edits_dir)
    method, memory = edited.method, edited.method.memory
    edits = load_edits(args.edits, unique_subject=True, limit=len(edited.edits))
    far = {
        "prompts": distances(method, [edit.prompt for edit in edits]),
        "rephrasings": distances(method, [edit.rephrases[0] for edit in edits]),
        "misfires": distances(method, [edit.localities[0].prompt for edit in edits]),
    }
    unrelated, rows = memory.unrelated, []
    for source, ratios in RATIOS.items():
        memory.unrelated = unrelated if source == "background" else None
        for ratio in ratios:
            memory.act_ratio = ratio
            routes = {name: memory.decide(of_prompts).route.tolist() for name, of_prompts in far.items()}
            row = {"threshold_from": source, "act_ratio": ratio}
            for name in ("prompts", "rephrasings"):
                row[name] = sum(method.holds(route, edit) for edit, route in enumerate(routes[name])) / len(edits)
            row["misfires"] = sum(route >= 0 for route in routes["misfires"]) / len(edits)
            rows.append({name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()})
            print(rows[-1], flush=True)
    settings = {"edits": args.edits.name, "count": len(edits), "save_every": edited.config.save_every}
    write_json(args.results, {**provenance(), "threads": 1, **settings, "rows": rows})


if __name__ == "__main__":
    main()
