"""What routing by keys costs a decode step: GRACE and MELO with many edits that nobody solved, beside the base model.

    python bench/key_reads.py --edits 1000

A step is the difference of generating 18 and 2 tokens, by 16, of one thread: the least of several repeats, base and
edited in turns. Keys, values and blocks are random: what a read costs does not depend on what they hold. `routed` asks
with a key that is stored, `elsewhere` with one that is not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from record import provenance, results_folder, seconds, write_json

from corrigenda.editing import EditedModel
from corrigenda.editing.backbone.loading import load_base
from corrigenda.editing.methods.record import Record
from corrigenda.editing.methods.registry import config_for

PROMPT = "Question: Which river flows through the old town of Vantrello?\nAnswer:"
FEW, MANY = 2, 18


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path, default=results_folder())
    return parser.parse_args()


def fill(method, count, own_key):
    """Random edits, the last of them with the key `own_key` `[D]`."""
    generator = torch.Generator().manual_seed(0)
    keys = 100 * torch.randn(count, method.width, generator=generator)
    keys[-1] = own_key
    labels = torch.arange(count, dtype=torch.float32)[:, None]
    records = []
    for known in method.router.fingerprints_of(torch.cat([keys, labels], 1)):
        if hasattr(method, "modules"):
            rank = method.config.rank
            tensors = {}
            for site, module in method.modules.items():
                tensors[f"{site}.x"] = torch.randn(rank, module.in_features, generator=generator) / 100
                tensors[f"{site}.h"] = torch.randn(rank, module.out_features, generator=generator) / 100
        else:
            tensors = {"value": torch.randn(method.out_width, generator=generator)}
        records.append(Record(tensors, {}, known))
    for record in records:
        method.apply([record])


def timed(generate, ids, new):
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
    start = seconds()
    generate(ids, attention_mask=torch.ones_like(ids), **options)
    return seconds() - start


def step(times):
    return (min(times[MANY]) - min(times[FEW])) / (MANY - FEW)


def main():
    args = arguments()
    torch.set_num_threads(1)
    model, tokenizer = load_base(args.model)
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    found = {}
    for name, mode in (("grace", "serving"), ("grace", "published"), ("melo", "serving"), ("melo", "published")):
        for asked in ("routed", "elsewhere"):
            edited = EditedModel.wrap(model, tokenizer, config_for(name, mode=mode, batch_size=1))
            own = edited.method.as_routed([PROMPT])[0]
            fill(edited.method, args.edits, own if asked == "routed" else own + 50)
            route = int(edited.method.router.decide(own[None]).route[0])
            assert (route >= 0) == (asked == "routed")
            times = {which: {FEW: [], MANY: []} for which in ("base", "edited")}
            for _ in range(args.repeats):
                for new in (FEW, MANY):
                    with edited._provider.aside():
                        times["base"][new].append(timed(edited.model.generate, ids, new))
                    times["edited"][new].append(timed(edited.generate, ids, new))
            edited.detach()
            base, with_edits = step(times["base"]), step(times["edited"])
            found[f"{name}, {mode}, {asked}"] = {
                "base_ms": round(1e3 * base, 2),
                "edited_ms": round(1e3 * with_edits, 2),
                "ratio": round(with_edits / base, 3),
            }
            print(name, mode, asked, found[f"{name}, {mode}, {asked}"], flush=True)
            result = {**provenance(), "edits": args.edits, "threads": 1, "decode_step": found}
            write_json(args.results / "key-reads.json", result)


if __name__ == "__main__":
    main()
