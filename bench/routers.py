"""Which router finds the right edit: rare tokens, or activation masks of a low layer or of MEMOIR's.

    python bench/routers.py --edits counterfact.jsonl --count 400
    python bench/routers.py --edits zsre.jsonl --count 500 --template 'Question: {prompt}\\nAnswer:'

Every edit's prompt is stored, no edit is written. `hit`: share of rephrasings whose best match is their edit. `at N %`:
share that is found at a threshold where N % of the file's locality prompts misfire. `default`: both shares at the
router's own threshold. `growth`: the same of rare tokens with more and more of the file's edits stored, the threshold
bounded as it is, and not.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from record import edits_arguments, provenance, results_folder, write_json

from corrigenda.editing import AssociativeConfig, EditedModel, load_edits
from corrigenda.editing.backbone.background import background_prompts
from corrigenda.editing.backbone.loading import load_base
from corrigenda.editing.routers.tokens import TokenRouter


def arguments():
    parser = edits_arguments(__doc__, template="{prompt}")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=results_folder())
    return parser.parse_args()


def measured(edited, edits):
    method = edited.method
    method.prepare()
    router = method.router
    router.add(method.as_routed([edit.prompt for edit in edits]))
    template = edited.prompts.template
    unwrapped = [template.wrap(e.localities[0].prompt) for e in edits if e.localities]
    frame = template.text.partition("{prompt}")
    unwrapped = [text.removeprefix(frame[0]).removesuffix(frame[2]) for text in unwrapped]
    asked = router.decide(method.as_routed([edit.rephrases[0] for edit in edits]))
    local = router.decide(method.as_routed(unwrapped))
    right = asked.nearest == torch.arange(len(edits))
    margin, misfire = (d.score - router.rival_weight * d.runner_up for d in (asked, local))
    hardest = misfire.sort(descending=True).values
    row = {"hit": right.float().mean().item()}
    for percent in (1, 5, 10):
        threshold = hardest[int(percent / 100 * len(hardest))]
        row[f"at {percent} %"] = (right & (margin > threshold)).float().mean().item()
    row["default threshold"] = router.threshold
    row["default: found"] = (asked.route == torch.arange(len(edits))).float().mean().item()
    row["default: misfires"] = (local.route >= 0).float().mean().item()
    return {name: round(value, 4) for name, value in row.items()}


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    model, tokenizer = load_base(args.model)
    everyone = [e for e in load_edits(args.edits, unique_subject=True) if e.rephrases]
    edits = everyone[: args.count]
    depth = model.config.num_hidden_layers
    rows, growth = {}, {}
    for name, settings in {
        "rare tokens (no forward pass)": {"router": "tokens"},
        "mask of a low layer, plain mean": {"router": "mask"},
        "mask of the edited layer (MEMOIR's)": {"router": "mask", "router_layer": int(0.8 * depth)},
    }.items():
        edited = EditedModel.wrap(model, tokenizer, AssociativeConfig(**settings), template=args.template)
        rows[name] = measured(edited, edits)
        edited.detach()
        print(f"{name:38}", rows[name], flush=True)
    for count in sorted({min(count, len(everyone)) for count in (30, 100, 300, 1000, len(everyone))}):
        growth[count] = {}
        for name, bound in {"bounded": {}, "unbounded": {"ceiling": math.inf}}.items():
            edited = EditedModel.wrap(model, tokenizer, AssociativeConfig(router="tokens"), template=args.template)
            edited.method.router = TokenRouter(tokenizer, background_prompts(), **bound)
            growth[count][name] = measured(edited, everyone[:count])
            edited.detach()
            print(f"rare tokens, {count} edits, {name}", growth[count][name], flush=True)
    found = {**provenance(), "edits": args.edits.name, "count": len(edits), "template": args.template}
    write_json(args.results / f"routers-{args.edits.stem}.json", {**found, "rows": rows, "growth": growth})


if __name__ == "__main__":
    main()
