"""WISE's scores by the published dense loop and by the fast path: the same edits and settings, both from nothing.

    OMP_NUM_THREADS=1 python bench/wise_dense.py --edits zsre.jsonl [--variants merge --count 100]

The dense loop (`dense_wise.py` of the tests) writes a plain transformers model, and is asked here in plain words too: a
prompt's memory by `route`, then the model with that memory in the layer's place. It is about five times slower.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from record import ROOT, edits_arguments, provenance, results_folder, write_json

from corrigenda.editing import EditedModel, Evaluator, load_edits
from corrigenda.editing.backbone.background import background_prompts
from corrigenda.editing.backbone.loading import load_base
from corrigenda.editing.memories.random_bits import random_bits
from corrigenda.editing.methods.registry import config_for
from corrigenda.kernels.reference import unpack_mask

sys.path.insert(0, str(ROOT / "tests" / "helpers"))
from dense_wise import DenseWise

# One shard, and shards that stay apart; thresholds as published, from the edits' distances.
VARIANTS = {
    "merge": {"threshold_from": "edits", "act_ratio": 1.4},
    "retrieve": {"threshold_from": "edits", "act_ratio": 1.22, "save_every": 25, "merge_every": None},
}


def arguments():
    parser = edits_arguments(__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--results", type=Path, default=results_folder() / "wise-dense-zsre.json")
    return parser.parse_args()


def dense_loop(model, edited, spared=True):
    """The dense loop with what an edited model was set up with, whose patch is taken off; `spared` if that is set."""
    method, config, sparing = edited.method, edited.config, None
    contexts = method.prepare()
    if spared and config.spared:
        found = method.prompt_features(config.layer, background_prompts()[: config.background_prompts])
        used = torch.cat([prompt.inputs for prompt in found]).float()
        second = used.T @ used
        identity = torch.eye(method.width, device=second.device)
        sparing = torch.linalg.inv(identity + config.spared * second / second.diagonal().mean())

    def mask_of(shard):
        bits = random_bits(config.seed, shard, method.width, method.out_width, config.mask_ratio, method.device)
        return unpack_mask(bits, method.out_width)

    edited.detach()
    return DenseWise(model, edited.prompts, contexts, config.layer, config, mask_of, sparing)


@torch.no_grad()
def answered(loop, prompt, answer, weight):
    """Argmax at each answer token, given the earlier ones, by the model with this weight in the layer's place."""
    own = loop.module.weight.data
    loop.module.weight.data = own if weight is None else weight.data
    try:
        logits = loop.model(torch.tensor([prompt + answer[:-1]], device=loop.device)).logits[0, len(prompt) - 1 :]
    finally:
        loop.module.weight.data = own
    return logits.argmax(1).tolist()


def dense_scores(loop, edits):
    encode, scores = loop.prompts.encode_with_target, {"rel": [], "gen": [], "loc": []}

    def agree(prompt, answer, wanted=None):
        found = answered(loop, prompt, answer, loop.route(prompt)[0])
        wanted = answer if wanted is None else wanted
        return sum(map(int.__eq__, found, wanted)) / len(wanted)

    for edit in edits:
        scores["rel"].append(agree(*encode(edit.prompt, edit.target)))
        rephrased = [agree(*encode(text, edit.target)) for text in edit.rephrases]
        scores["gen"] += [sum(rephrased) / len(rephrased)] if rephrased else []
        for place in edit.localities:
            prompt, answer = encode(place.prompt, place.answer)
            scores["loc"].append(agree(prompt, answer, answered(loop, prompt, answer, None)))
    return {name: round(sum(values) / len(values), 4) for name, values in scores.items()}


def main():
    args = arguments()
    torch.set_num_threads(1)
    model, tokenizer = load_base(args.model)
    edits = load_edits(args.edits, unique_subject=True, limit=args.count)
    rows, found = {}, provenance()
    for variant in args.variants:
        config = config_for(f"wise-{variant}", **VARIANTS[variant])
        edited = EditedModel.wrap(model, tokenizer, config, template=args.template)
        edited.edit(edits)
        scores = Evaluator(edited, free=False).score(edits)
        fast = {name: round(getattr(scores, name), 4) for name in ("rel", "gen", "loc")}
        rows[variant] = {"fast": fast, "settings": edited.config.to_dict()}
        prompts = background_prompts()
        loop = dense_loop(model, edited)
        for number, edit in enumerate(edits):
            prompt = prompts[number % len(prompts)]
            loop.edit(edit, loop.prompts.encode(loop.prompts.wrap(prompt)))
        dense = rows[variant]["dense"] = dense_scores(loop, edits)
        rows[variant]["fast_less_dense"] = {name: round(fast[name] - dense[name], 4) for name in dense}
        print(variant, rows[variant], flush=True)
        result = {"edits": args.edits.name, "count": args.count, "rows": rows}
        write_json(args.results, {**found, "threads": 1, **result})


if __name__ == "__main__":
    main()
