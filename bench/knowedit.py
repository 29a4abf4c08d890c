"""KnowEdit's own scores of one stream: reliability, other names of the subject, and each kind of locality apart.

    OMP_NUM_THREADS=1 python bench/knowedit.py --data FOLDER

FOLDER has `knowedit_wiki_counterfact.jsonl`. "Relation_Specificity" asks another fact about an edit's subject, and what
is scored is whether its answer stays as it was; "Forgetfulness" asks the edited relation again, for what it was before
("..., which is not X, is"), and is no other question. "Subject_Aliasing" asks the edit by another name of its subject.
Edits are the first of each subject; scores are over all, and over the half that no setting of the router was chosen on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch
from record import provenance, results_folder, write_json
from request_kinds import half_of

from corrigenda.editing import EditedModel, Evaluator, Locality, load_edits
from corrigenda.editing.methods.registry import config_for
from corrigenda.editing.methods.settings import settings_of

FILE = "knowedit_wiki_counterfact.jsonl"
KEPT = ("Relation_Specificity", "Forgetfulness")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--count", type=int)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of associative")
    parser.add_argument("--results", type=Path, default=results_folder() / "knowedit.json")
    return parser.parse_args()


def asked_by_kind(path):
    """By id and kind: an edit's questions with their answers."""
    found = {}
    for record in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        kinds = found.setdefault(record["id"], {})
        for step in [*record["localities"], *record["portability"]]:
            if step["kind"] != "Subject_Aliasing" or step["answer"] == record["target_new"]:
                kinds.setdefault(step["kind"], []).append((step["prompt"], step["answer"]))
    return found


def scores(evaluator, edits, asked):
    """Rel, the share of other names that get the edit's answer, and what is kept of each kind of locality."""
    aliased = [
        dataclasses.replace(
            edit, localities=(), rephrases=[text for text, _ in asked[edit.id].get("Subject_Aliasing", [])]
        )
        for edit in edits
    ]
    named = evaluator.score(aliased)
    row = {"rel": named.rel, "free_rel": named.free_rel, "alias": named.gen, "free_alias": named.free_gen}
    for kind in KEPT:
        local = [
            dataclasses.replace(edit, localities=[Locality(*one) for one in asked[edit.id][kind]], rephrases=())
            for edit in edits
            if kind in asked[edit.id]
        ]
        row[kind.lower()] = evaluator.score(local).loc
        row[f"{kind.lower()}_edits"] = len(local)
    return {name: round(value, 4) for name, value in row.items()}


def main():
    args = arguments()
    torch.set_num_threads(1)
    asked = asked_by_kind(args.data / FILE)
    edits = load_edits(args.data / FILE, unique_subject=True, limit=args.count)
    config = config_for("associative", **settings_of("associative", args.set))
    edited = EditedModel.from_pretrained(args.model, config=config, template="{prompt}")
    # No method is told what else is asked: localities would become questions that an edit must not answer.
    written = edited.edit([dataclasses.replace(edit, localities=()) for edit in edits])
    evaluator = Evaluator(edited)
    result = {
        **provenance(),
        "edits": len(edits),
        "unsolved": len(written.failing),
        "all": scores(evaluator, edits, asked),
        "half_not_chosen_on": scores(evaluator, [edit for edit in edits if half_of(edit.subject)], asked),
    }
    print(json.dumps(result, indent=2), flush=True)
    write_json(args.results, result)


if __name__ == "__main__":
    main()
