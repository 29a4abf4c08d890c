"""Edits a second: the published dense loops of MEMOIR and WISE, their fast paths, and associative, in one process.

    OMP_NUM_THREADS=1 python bench/editing_speed.py --edits zsre.jsonl [--methods wise --results wise.json]

One thread, thread time (wall time on a GPU), the same edits for all, a method's variants at one layer, and the least
time of several rounds in which the variants take turns; beside each time the floating-point operations of its matrix
products and attention, and the ratio to the method's dense loop (for *associative*, MEMOIR's).
Models are set up (contexts, background) before the clock starts; the dense loop gets both ready-made too.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import torch
from record import ROOT, edits_arguments, provenance, results_folder, seconds, write_json
from torch.utils.flop_counter import FlopCounterMode
from wise_dense import dense_loop

from corrigenda.editing import AssociativeConfig, EditedModel, MemoirConfig, WiseConfig, load_edits
from corrigenda.editing.backbone.loading import load_base

sys.path.insert(0, str(ROOT / "tests" / "helpers"))
from dense_memoir import DenseMemoir


def arguments():
    parser = edits_arguments(__doc__)
    parser.add_argument("--methods", nargs="+", default=[*METHODS, "associative"], choices=[*METHODS, "associative"])
    parser.add_argument("--layer", type=int, default=None, help="MEMOIR's and WISE's; by default their own")
    parser.add_argument("--dense", type=int, default=2, help="edits for the dense loop")
    parser.add_argument("--memoir", type=int, default=8, help="edits for each MEMOIR and WISE variant")
    parser.add_argument("--device", default=None)
    parser.add_argument("--associative", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=results_folder() / "editing-speed.json")
    return parser.parse_args()


OWN_FLOPS = {
    torch.ops.corrigenda.label_losses: lambda hidden, weight, *_, **__: 4 * hidden[0] * weight[0] * weight[1],
    torch.ops.corrigenda.delta_linear: lambda x, base, delta, *_, **__: 2 * x[0] * delta[0] * delta[1],
    torch.ops.corrigenda.masked_sgd_: lambda delta, x, *_, **__: 2 * x[0] * delta[0] * delta[1],
}
"""Of ops that torch does not know, from the shapes of their arguments."""


def timed(edited, edits, count_on):
    """Thread seconds an edit, mean steps, and operations an edit (of `count_on` alone: counting slows a run)."""
    edited.method.prepare()
    with FlopCounterMode(display=False, custom_mapping=OWN_FLOPS) as counter:  # and what is only done the first time
        edited.edit(count_on)
    start = seconds()
    written = edited.edit(edits)
    each = (seconds() - start) / len(edits)
    return {
        "edits": len(edits),
        "seconds_per_edit": round(each, 3),
        "edits_per_second": round(1 / each, 4),
        "mean_steps": round(sum(result.steps for result in written) / len(written), 2),
        "gflop_per_edit": round(counter.get_total_flops() / len(count_on) / 1e9, 1),
    }


def dense_memoir(model, edited):
    method, config = edited.method, edited.config
    contexts, permutation, background = method.prepare(), method.router.permutation, method.router.background
    edited.detach()
    return DenseMemoir(model, edited.prompts, contexts, config.layer, config.top_k, permutation, background)


def dense(loop, edits, irrelevant):
    """The same for a dense loop over plain edits."""
    flops, most = {}, loop.steps
    for count in (1, 2):
        loop.steps = count
        with FlopCounterMode(display=False) as counter:
            loop.edit(edits[0], irrelevant)
        flops[count] = counter.get_total_flops()
    loop.steps = most
    start = seconds()
    steps = [len(loop.edit(edit, irrelevant)) for edit in edits]
    each = (seconds() - start) / len(edits)
    mean_steps = sum(steps) / len(steps)
    per_step = flops[2] - flops[1]
    return {
        "edits": len(edits),
        "seconds_per_edit": round(each, 3),
        "edits_per_second": round(1 / each, 4),
        "mean_steps": round(mean_steps, 2),
        "gflop_per_edit": round((flops[1] + (mean_steps - 1) * per_step) / 1e9, 1),
    }


# WISE's dense loop does an edit in 8 steps of 5 rows with the settings of SmolLM2; here as published for LLaMA-3-8B.
_published = functools.partial(
    WiseConfig,
    **{"contexts": 11, "steps": 30, "learning_rate": 1.0, "mask_ratio": 0.2, "spared": 0.0, "margin_weight": 1.0},
    **{"distance_tokens": "row", "reduction": "published"},
)

# `spared` would only slow the dense loop: a product by `[D, D]` at each step.
_dense_wise = functools.partial(dense_loop, spared=False)

METHODS = {
    "memoir": (MemoirConfig, dense_memoir),
    "wise": (WiseConfig, _dense_wise),
    "wise as published": (_published, _dense_wise),
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

    rows, layers = {}, {}

    def keep(name, row):
        rows[name] = min(row, rows.get(name, row), key=lambda found: found["seconds_per_edit"])

    for _ in range(args.rounds):
        for name in filter(METHODS.get, args.methods):
            config_of, dense_loop = METHODS[name]
            edited = variant(config_of(layer=args.layer))
            layers[name] = edited.config.layer
            keep(f"{name}, one by one", timed(edited, edits[: args.memoir], spare[:1]))
            text = irrelevant if name == "memoir" else edited.prompts.encode(edited.prompts.wrap(irrelevant[0]))
            loop = dense_loop(model, edited)
            keep(f"{name}, dense loop", dense(loop, edits[: args.dense], text))
            model.requires_grad_(True)
            edited = variant(config_of(layer=args.layer, batch_size=8))
            keep(f"{name}, batches of 8", timed(edited, edits[: args.memoir], spare[:1]))
            edited.detach()
        if "associative" in args.methods:
            edited = variant(AssociativeConfig())
            keep("associative, default", timed(edited, edits[: args.associative], spare[:8]))
            edited.detach()

    for name, row in rows.items():
        of_method = f"{name.split(',')[0]}, dense loop"
        reference = rows.get(of_method, rows.get("memoir, dense loop"))
        if reference:
            row["times_the_dense_loop"] = round(reference["seconds_per_edit"] / row["seconds_per_edit"], 2)
    for name, row in rows.items():
        print(f"{name:34}", row)
    write_json(args.results, {**provenance(), "threads": 1, "layers": layers, "edits": args.edits.name, "rows": rows})


if __name__ == "__main__":
    main()
