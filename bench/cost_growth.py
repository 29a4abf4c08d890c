"""Does an edit cost more when many are stored? The same edits written beside 100 and beside 1,000 others, in turn.

    OMP_NUM_THREADS=1 python bench/cost_growth.py --edits zsre.jsonl

The stored edits are real to the router (prompts of the file) and of the usual size in the banks; thread time, minimum
over the repetitions, which alternate between the two sizes. Asking is timed too: one decision for a prompt.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from made_up import random_rows
from record import provenance, results_folder, write_json

from corrigenda.editing import EditedModel, load_edits
from corrigenda.editing.backbone.loading import load_base


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--edits", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--repetitions", type=int, default=4)
    parser.add_argument("--results", type=Path, default=results_folder() / "cost-growth.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_base(args.model)
    edits = load_edits(args.edits, unique_subject=True, limit=max(args.sizes) + 8)
    new = edits[-8:]
    seconds = {size: [] for size in args.sizes}
    asking = {size: [] for size in args.sizes}
    for _ in range(args.repetitions):
        for size in args.sizes:
            edited = EditedModel.wrap(model, tokenizer, template="Question: {prompt}\\nAnswer:")
            method = edited.method
            with random_rows(edited):
                edited.edit(edits[:size])
            start = time.thread_time()
            edited.edit(new)
            seconds[size].append((time.thread_time() - start) / len(new))
            ids = edited.prompts.encode(edited.prompts.wrap(new[0].rephrases[0]))
            method.decide([ids])
            start = time.thread_time()
            method.decide([ids])
            asking[size].append(time.thread_time() - start)
            edited.detach()
    best = {size: min(times) for size, times in seconds.items()}
    first, last = args.sizes[0], args.sizes[-1]
    result = {
        **provenance(),
        "threads": 1,
        "seconds_per_edit": {str(size): round(value, 4) for size, value in best.items()},
        "growth": round(best[last] / best[first] - 1, 4),
        "seconds_per_decision": {str(size): round(min(times), 6) for size, times in asking.items()},
    }
    print(result)
    write_json(args.results, result)


if __name__ == "__main__":
    main()
