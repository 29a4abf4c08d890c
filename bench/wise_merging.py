"""What merging WISE's shards keeps: every edit asked of the memory that holds it, without a threshold.

    OMP_NUM_THREADS=1 python bench/wise_merging.py --edits zsre.jsonl

One stream for each way to mask (every shard all entries; two or four shards, entries of their own), its shards kept
apart, and then merged by twos and by fours in each of several ways. `found_*`: the share of prompts that are moved
further than all but `--misfires` of the locality prompts are, over all memories together.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from record import edits_arguments, provenance, results_folder, write_json

from corrigenda.editing import EditedModel, Evaluator, load_edits
from corrigenda.editing.backbone.loading import load_base
from corrigenda.editing.methods.registry import config_for

# Entries of one's own are fewer, and want longer steps and more room: what else differs from the model's defaults.
MASKS = {
    "all entries": (4, {}),
    "disjoint, two": (2, {"disjoint_masks": True, "learning_rate": 12.0, "norm_constraint": 4.0}),
    "disjoint, four": (4, {"disjoint_masks": True, "learning_rate": 24.0, "norm_constraint": 4.0}),
}

# (kind, density, scale) by shards merged.
MERGES = {
    "all entries": {
        2: (("ties", 0.53, 1.0), ("ties", 1.0, 1.0), ("linear", 1.0, 2.0), ("ties", 0.53, 2.0)),
        4: (
            *(("ties", 0.53, 1.0), ("ties", 1.0, 1.0), ("linear", 1.0, 4.0)),
            *(("ties", 0.53, 1.5), ("ties", 0.53, 2.0), ("ties", 0.53, 2.5), ("ties", 0.3, 2.0)),
        ),
    },
    "disjoint, two": {2: (("ties", 1.0, 1.0),)},
    "disjoint, four": {4: (("ties", 1.0, 1.0),)},
}


def arguments():
    parser = edits_arguments(__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--shard", type=int, default=25)
    parser.add_argument("--misfires", type=float, default=0.02)
    parser.add_argument("--masks", nargs="+", default=list(MASKS), choices=list(MASKS))
    parser.add_argument("--results", type=Path, default=results_folder() / "wise-merging-zsre.json")
    return parser.parse_args()


class ShardScores:
    """An edited model whose memories can be put in one at a time, and what they make of the edits they hold."""

    def __init__(self, edited, edits, misfires):
        self.memory, self.method, self.misfires = edited.method.memory, edited.method, misfires
        self.edits = [replace(edit, localities=[]) for edit in edits]
        self.evaluator = Evaluator(edited, free=False)
        self.empty = self.memory.current
        self.local = [place.prompt for edit in edits for place in edit.localities]
        self.memory.act_ratio = 0.0

    def moved(self, prompts):
        return self.method.routes(prompts).score

    def __call__(self, memories):
        rel = gen = found = found_gen = 0.0
        for memory in memories:
            self.memory.shards = [replace(memory, minimum=torch.tensor(1.0)), self.empty]
            part = self.edits[memory.first : memory.end]
            scores, share = self.evaluator.score(part), len(part) / len(self.edits)
            far = self.moved(self.local).quantile(1 - self.misfires / len(memories))
            rel, gen = rel + share * scores.rel, gen + share * scores.gen
            found += share * float((self.moved([edit.prompt for edit in part]) > far).float().mean())
            texts = [text for edit in part for text in edit.rephrases]
            found_gen += share * float((self.moved(texts) > far).float().mean())
        values = {"rel": rel, "gen": gen, "found": found, "found_gen": found_gen}
        return {name: round(value, 4) for name, value in values.items()}

    def merged(self, memories, together, kind, density, scale):
        """The memories, merged by so many."""
        made = []
        for place in range(0, len(memories), together):
            self.memory.shards = [*memories[place : place + together], self.empty]
            self.memory.merge([1 / together] * together, kind, density, 0, scale)
            made.append(self.memory.shards[0])
        return made


def main():
    args = arguments()
    torch.set_num_threads(1)
    model, tokenizer = load_base(args.model)
    edits = load_edits(args.edits, unique_subject=True, limit=args.count)
    rows = []
    for masks in args.masks:
        together, settings = MASKS[masks]
        settings = {"threshold_from": "edits", "merge_every": together * args.shard, **settings}
        config = config_for("wise-retrieve", save_every=args.shard, **settings)
        edited = EditedModel.wrap(model, tokenizer, config, template=args.template)
        memory = edited.method.memory
        merge, memory.merge = memory.merge, lambda *_: None  # the stream's shards stay apart
        written = edited.edit(edits)
        memory.merge = merge
        apart, scored = memory.finished, ShardScores(edited, edits, args.misfires)
        loss = round(sum(result.loss for result in written) / len(written), 3)
        rows.append({"masks": masks, "merge": "apart", "loss": loss, **scored(apart)})
        print(rows[-1], flush=True)
        own = rows[-1]["rel"]
        for count, ways in MERGES[masks].items():
            for kind, density, scale in ways:
                row = {"masks": masks, "merge": f"{kind} of {count}", "density": density, "scale": scale}
                row.update(scored(scored.merged(apart, count, kind, density, scale)))
                rows.append({**row, "keeps": round(row["rel"] / own, 3)})
                print(rows[-1], flush=True)
        edited.detach()
        result = {"edits": args.edits.name, "count": args.count, "shard": args.shard, "misfires": args.misfires}
        write_json(args.results, {**provenance(), "threads": 1, **result, "rows": rows})


if __name__ == "__main__":
    main()
