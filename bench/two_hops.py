"""Free generation as StableKE's benchmark scores it: an edit's question, a rephrasing, and a question two hops away.

    python bench/two_hops.py --edits two_hop.jsonl --method stableke --limit 20

A record has `prompt`, `target_new`, `rephrase`, `two_hop_question` and `two_hop_answer`, with `old_answer`,
`two_hop_old_answer` and the aliases of each answer. `before` is the unedited model by the same rule.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from record import edits_arguments, provenance, results_folder, write_json

from corrigenda.editing import Edit, EditedModel
from corrigenda.editing.methods.config import CONFIGS
from corrigenda.editing.methods.registry import config_for
from corrigenda.editing.methods.settings import settings_of
from corrigenda.editing.scores.mentions import counts_as_edited

KINDS = {
    "prompt": ("target_new", "target_aliases", "old_answer"),
    "rephrase": ("target_new", "target_aliases", "old_answer"),
    "two_hop_question": ("two_hop_answer", "two_hop_answer_aliases", "two_hop_old_answer"),
}


def arguments():
    parser = edits_arguments(__doc__)
    parser.add_argument("--method", default="associative", choices=list(CONFIGS))
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the method")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--results", type=Path, default=results_folder())
    return parser.parse_args()


def shares(edited, records, new_tokens):
    """By kind of question, the share of records whose answer counts."""
    found = {}
    for kind, (new, aliases, old) in KINDS.items():
        texts = edited.generate_text([record[kind] for record in records], new_tokens)
        right = [
            counts_as_edited(text, [record[new], *record.get(aliases, ())], [record[old]])
            for text, record in zip(texts, records)
        ]
        found[kind] = round(sum(right) / len(right), 4)
    return found


def main():
    args = arguments()
    torch.set_num_threads(1)
    records, seen = [], set()
    for line in args.edits.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["subject"] not in seen:
            seen.add(record["subject"])
            records.append(record)
    records = records[: args.limit]
    config = config_for(args.method, **settings_of(args.method, args.set))
    edited = EditedModel.from_pretrained(args.model, config=config, template=args.template)
    before = shares(edited, records, args.new_tokens)
    edits = [
        Edit(r["prompt"], r["target_new"], subject=r["subject"], id=r["id"], ground_truth=[r["old_answer"]])
        for r in records
    ]
    start = time.perf_counter()
    edited.edit(edits, keep_unsolved=True)
    seconds = time.perf_counter() - start
    result = {
        **provenance(),
        "edits": args.edits.name,
        "records": len(records),
        "method": args.method,
        "settings": edited.config.to_dict(),
        "template": args.template,
        "seconds_per_edit": round(seconds / len(records), 3),
        "before": before,
        "after": shares(edited, records, args.new_tokens),
    }
    write_json(args.results / f"two-hops-{args.method}.json", result)
    print(json.dumps({name: result[name] for name in ("method", "seconds_per_edit", "before", "after")}))


if __name__ == "__main__":
    main()
