"""What methods that change weights cost: values side by side beside one by one as published, UltraEdit's dual solve.

    OMP_NUM_THREADS=1 python bench/changed_weights.py --edits zsre.jsonl

One thread, one process, thread time. "As published" is ROME's loop: each step a forward of the whole model over the
edit's rows and "{subject} is a", padded side by side, with all logits. Both find the same values: their losses are
beside the times, and so is what either computes, in products. A CPU thread is busy with one edit already: that edits
stand side by side saves it nothing, so the ratio of these is what can be had. The ridge solve is timed at the widths of
Mistral-7B, LLaMA-3-8B and SmolLM2, 400 answer tokens a turn as 100 edits have, from random keys; at the widest the
published form runs once. What the dual solve gives are the factors that an edit's record keeps; the product that adds
them to a matrix is timed with them and without.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from record import edits_arguments, provenance, results_folder, seconds, write_json
from torch.utils.flop_counter import FlopCounterMode

from corrigenda.editing import EditedModel, load_edits
from corrigenda.editing.methods.registry import config_for
from corrigenda.editing.methods.weights.solving import dual_ridge
from corrigenda.editing.methods.weights.values import optimised_values

SOLVES = {
    "Mistral-7B down_proj": (14336, 4096),
    "LLaMA-3-8B gate_proj": (4096, 14336),
    "SmolLM2 down_proj": (1536, 576),
}
ANSWER_TOKENS = 400


def arguments():
    parser = edits_arguments(__doc__)
    parser.add_argument("--batch", type=int, default=16, help="edits side by side")
    parser.add_argument("--one-by-one", type=int, default=2, help="edits for the published loop")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--contexts", type=int, default=21, help="rows of an edit: 21 are ROME's, 6 MEMIT's")
    parser.add_argument("--layer", type=int, default=12, help="where values are found: 12 is MEMIT's on SmolLM2")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only-values", action="store_true", help="without the solves; a result file of its own")
    parser.add_argument("--widest", action="store_true", help="the solve at 14,336 too: 2 GB and minutes")
    return parser.parse_args()


def published_value(model, one, layer, config, pad):
    """ROME's `compute_v` for one edit: (change, last loss)."""
    rows = [(row.tokens, row.labels, at) for row, at in zip(one.rows, one.lookups)]
    texts = [*(tokens for tokens, _, _ in rows), one.subject]
    width = max(map(len, texts))
    ids = torch.tensor([[*text, *[pad] * (width - len(text))] for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    labels = torch.full((len(rows), width), -100)
    for row, (tokens, of_row, _) in zip(labels, rows):
        row[len(tokens) - len(of_row) : len(tokens)] = torch.tensor(of_row)
    places = torch.tensor([*(at for _, _, at in rows), len(one.subject) - 1])
    delta = torch.zeros(one.subject_hidden.shape[1], requires_grad=True)

    def add(_module, _args, out):
        at = F.one_hot(places, width).to(out.dtype)[..., None]
        return out + at * delta

    handle = model.model.layers[layer].mlp.down_proj.register_forward_hook(add)
    adam, before = torch.optim.Adam([delta], lr=config.learning_rate), None
    try:
        for step in range(config.steps):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            of_subject = F.log_softmax(logits[-1, places[-1]], -1)
            before = of_subject.detach() if before is None else before
            each = F.cross_entropy(logits[:-1].transpose(1, 2), labels, reduction="none").sum(1)
            loss = (each / (labels != -100).sum(1)).mean()
            loss = loss + config.kl_weight * F.kl_div(before, of_subject, log_target=True, reduction="sum")
            loss = loss + config.value_decay * delta.norm() / one.norm**2
            if step == config.steps - 1:
                break
            adam.zero_grad()
            loss.backward()
            adam.step()
            with torch.no_grad():
                delta *= min(1.0, float(config.clamp * one.norm / delta.norm()))
    finally:
        handle.remove()
    return delta.detach(), float(loss.detach())


def counted_products():
    """A counter of the products that torch and `label_losses` do, which is both of its logits and their gradient."""

    def of_losses(hidden, weight, _labels, **_out):
        return 4 * hidden[0] * hidden[1] * weight[0]

    return FlopCounterMode(display=False, custom_mapping={torch.ops.corrigenda.label_losses: of_losses})


def values(args):
    """Thread seconds of an edit's value either way, and how far the values and their losses are apart."""
    settings = {"steps": args.steps, "contexts": args.contexts, "stop_loss": 0.0, "layer": args.layer}
    edited = EditedModel.from_pretrained(args.model, config=config_for("rome", **settings), template=args.template)
    method, layer, config = edited.method, edited.config.layer, edited.config
    edits = load_edits(args.edits, unique_subject=True, limit=args.batch)
    contexts = method.prepare()
    for parameter in edited.model.parameters():
        parameter.requires_grad_(False)
    best, found, products = {}, {}, {}
    for _ in range(args.rounds):
        start = seconds()
        with counted_products() as counter:
            asked = method.asked(edits, contexts, layer)
            found["batched"] = optimised_values(edited.decoder, layer, asked, config)
        best["batched"] = min(best.get("batched", 1e9), (seconds() - start) / len(edits))
        products["batched"] = counter.get_total_flops() / len(edits)
        start = seconds()
        with counted_products() as counter:
            published = [
                published_value(edited.model, one, layer, config, edited.tokenizer.pad_token_id or 0)
                for one in asked[: args.one_by_one]
            ]
        best["one by one"] = min(best.get("one by one", 1e9), (seconds() - start) / len(published))
        products["one by one"] = counter.get_total_flops() / len(published)
    apart = [float((delta - own).norm() / delta.norm()) for (delta, _), own in zip(published, found["batched"].delta)]
    return {
        "layer": layer,
        "rows_an_edit": len(contexts),
        "steps": args.steps,
        "edits": {"batched": len(edits), "one by one": args.one_by_one},
        "seconds_an_edit": {name: round(value, 3) for name, value in best.items()},
        "ratio": round(best["one by one"] / best["batched"], 1),
        "gigaflops_an_edit": {name: round(value / 1e9, 1) for name, value in products.items()},
        "ratio_of_flops": round(products["one by one"] / products["batched"], 1),
        "losses_one_by_one": [round(loss, 5) for _, loss in published],
        "losses_batched": [round(loss, 5) for loss in found["batched"].loss[: args.one_by_one]],
        "largest_relative_difference": max(apart),
    }


def primal(keys, rows):
    """As published: a solve of as many unknowns as the layer is wide."""
    whole = keys.T @ keys
    whole.diagonal().add_(1)
    return torch.linalg.solve(whole, keys.T @ rows)


def solves(widest):
    """Thread seconds of a turn's ridge regression in its primal form and in the dual, and how far they are apart."""
    found = {}
    for name, (width, out) in SOLVES.items():
        if width > 10_000 and not widest:
            continue
        generator = torch.Generator().manual_seed(0)
        keys = torch.randn(ANSWER_TOKENS, width, generator=generator)
        rows = torch.randn(ANSWER_TOKENS, out, generator=generator)
        repeats = 1 if width > 10_000 else 3
        times = {"primal": [], "dual": [], "dual and product": []}
        for _ in range(repeats):
            start = time.thread_time()
            expected = primal(keys, rows)
            times["primal"].append(time.thread_time() - start)
            start = time.thread_time()
            factors = dual_ridge(keys, rows)
            times["dual"].append(time.thread_time() - start)
            actual = keys.T @ factors
            times["dual and product"].append(time.thread_time() - start)
        least = {form: min(took) for form, took in times.items()}
        found[name] = {
            "D": width,
            "d": out,
            "tokens": ANSWER_TOKENS,
            **{f"{form.replace(' ', '_')}_seconds": round(took, 4) for form, took in least.items()},
            "ratio": round(least["primal"] / least["dual"], 1),
            "ratio_with_product": round(least["primal"] / least["dual and product"], 1),
            "relative_difference": float((actual - expected).norm() / expected.norm()),
        }
        print(name, found[name], flush=True)
    return found


def main():
    args = arguments()
    torch.set_num_threads(1)
    result = {**provenance(), "model": args.model, "edits": args.edits.name}
    if not args.only_values:
        result["ridge"] = solves(args.widest)
    result["values"] = values(args)
    print(result["values"], flush=True)
    write_json(results_folder() / f"changed-weights{'-values' if args.only_values else ''}.json", result)


if __name__ == "__main__":
    main()
