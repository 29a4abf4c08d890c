"""Edits a second: the published dense MEMOIR loop, MEMOIR's fast path, and the associative method, in one process.

    OMP_NUM_THREADS=1 python bench/editing_speed.py --edits zsre.jsonl

One thread, thread time (wall time on a GPU), the same edits for all, MEMOIR's variants at one layer; beside each time
the floating-point operations of its matrix products and attention, counted by torch, and the ratio to the dense loop.
Models are set up (contexts, background) before the clock starts; the dense loop gets both ready-made too.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from record import ROOT, provenance, results_folder, seconds, write_json
from torch.utils.flop_counter import FlopCounterMode

from corrigenda.editing import AssociativeConfig, EditedModel, MemoirConfig, load_edits
from corrigenda.editing.base import load_base

sys.path.insert(0, str(ROOT / "tests"))
from dense_memoir import DenseMemoir


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--edits", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--template", default="Question: {prompt}\\nAnswer:")
    parser.add_argument("--layer", type=int, default=None, help="MEMOIR's; by default its own")
    parser.add_argument("--dense", type=int, default=2, help="edits for the dense loop")
    parser.add_argument("--memoir", type=int, default=8, help="edits for each MEMOIR variant")
    parser.add_argument("--device", default=None)
    parser.add_argument("--associative", type=int, default=32)
    parser.add_argument("--results", type=Path, default=results_folder() / "editing-speed.json")
    return parser.parse_args()


def timed(edited, edits, count_on):
    """Thread seconds an edit, mean steps, and operations an edit (of `count_on` alone: counting slows a run)."""
    edited.method.prepare()
    start = seconds()
    written = edited.edit(edits)
    each = (seconds() - start) / len(edits)
    with FlopCounterMode(display=False) as counter:
        edited.edit(count_on)
    return {
        "edits": len(edits),
        "seconds_per_edit": round(each, 3),
        "edits_per_second": round(1 / each, 4),
        "mean_steps": round(sum(result.steps for result in written) / len(written), 2),
        "gflop_per_edit": round(counter.get_total_flops() / len(count_on) / 1e9, 1),
    }


def dense(model, edited, edits, irrelevant, layer):
    method = edited.method
    contexts, permutation, background = method.prepare(), method.router.permutation, method.router.background
    top_k = edited.config.top_k
    edited.detach()
    loop = DenseMemoir(model, edited.prompts, contexts, layer, top_k, permutation, background)
    start = seconds()
    steps = [len(loop.edit(edit, irrelevant)) for edit in edits]
    each = (seconds() - start) / len(edits)
    flops = {}
    for count in (1, 2):
        loop.steps = count
        with FlopCounterMode(display=False) as counter:
            loop.edit(edits[0], irrelevant)
        flops[count] = counter.get_total_flops()
    mean_steps = sum(steps) / len(steps)
    per_step = flops[2] - flops[1]
    return {
        "edits": len(edits),
        "seconds_per_edit": round(each, 3),
        "edits_per_second": round(1 / each, 4),
        "mean_steps": round(mean_steps, 2),
        "gflop_per_edit": round((flops[1] + (mean_steps - 1) * per_step) / 1e9, 1),
    }


def main():
    args = arguments()
    torch.set_num_threads(1)
    model, tokenizer = load_base(args.model, device=args.device)
    most = max(args.associative, args.memoir)
    edits = load_edits(args.edits, unique_subject=True, limit=most + 9)
    spare, edits = edits[:9], edits[9:]
    irrelevant = (spare[0].localities[0].prompt, spare[0].localities[0].answer)

    def variant(config):
        return EditedModel.wrap(model, tokenizer, config, template=args.template)

    rows = {}
    edited = variant(MemoirConfig(layer=args.layer))
    layer = edited.config.layer
    rows["memoir, one by one"] = timed(edited, edits[: args.memoir], spare[:1])
    rows["memoir, dense loop as published"] = dense(model, edited, edits[: args.dense], irrelevant, layer)
    edited = variant(MemoirConfig(layer=layer, batch_size=8))
    rows["memoir, batches of 8"] = timed(edited, edits[: args.memoir], spare[:1])
    edited.detach()
    edited = variant(AssociativeConfig())
    rows["associative, default"] = timed(edited, edits[: args.associative], spare[:8])
    edited.detach()

    reference = rows["memoir, dense loop as published"]["seconds_per_edit"]
    for row in rows.values():
        row["times_the_dense_loop"] = round(reference / row["seconds_per_edit"], 2)
    for name, row in rows.items():
        print(f"{name:34}", row)
    write_json(
        args.results, {**provenance(), "threads": 1, "memoir_layer": layer, "edits": args.edits.name, "rows": rows}
    )


if __name__ == "__main__":
    main()
