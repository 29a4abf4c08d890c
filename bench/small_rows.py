"""Quality against bytes an edit: rows whole and kept small, of the same solved edits.

    OMP_NUM_THREADS=1 python bench/small_rows.py --data FOLDER --count 100

The edits of each file are solved once, whole; then they are kept in each form and asked. Half of the subjects are for
choosing a form (the first, the third, ...), the other half is reported; both stand in the result. Keys are read in none
of these scores, where tokens tell which row comes next: `--router mask` reads them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from record import provenance, results_folder, write_json
from simulate_fleet import Assumed, row_bytes

from corrigenda.editing import AssociativeConfig, EditedModel, Evaluator, load_base, load_edits
from corrigenda.editing.memories.row_form import rows_in
from corrigenda.editing.methods.associative.config import row_form
from corrigenda.editing.methods.record import Record

FILES = {"zsre.jsonl": "Question: {prompt}\\nAnswer:", "counterfact.jsonl": "{prompt}"}
FORMS = {
    "whole": {},
    "bfloat16, keys of 256": {"key_dimensions": 256, "value_dtype": "bfloat16"},
    "int8, keys of 256": {"key_dimensions": 256, "value_dtype": "int8"},
    "model's type, keys of 256": {"key_dimensions": 256},
    "model's type, keys of 64": {"key_dimensions": 64},
}


class SolvedEdits:
    """One file's edits, solved once and asked in any form."""

    def __init__(self, args, file):
        self.base, self.template = load_base(args.model), FILES[file]
        self.settings = {"router": args.router}
        self.edits = load_edits(args.data / file, unique_subject=True, limit=args.count)
        edited = self.model({})
        self.solved = []
        size = edited.config.batch_size
        for start in range(0, len(self.edits), size):
            self.solved += edited.method.solve(self.edits[start : start + size])
        edited.detach()

    def model(self, settings):
        config = AssociativeConfig(**self.settings, **settings)
        return EditedModel.wrap(*self.base, config, template=self.template)

    def scores(self, settings):
        """By half: the scores of its edits beside all others, and the bytes of an edit's tensors here."""
        edited = self.model(settings)
        known = {edit.prompt: one for edit, one in zip(self.edits, self.solved)}
        method = edited.method

        def solve(edits):
            method.prepare()
            found = []
            for one in (known[edit.prompt] for edit in edits):
                whole = rows_in(one.record.tensors)
                keys = torch.nn.functional.normalize(method.banks.projected(whole.keys.float()), dim=-1)
                rows = method.form.kept(keys, whole.values.float(), method.banks.dtype)
                found.append(one._replace(record=Record(rows.tensors, {}, one.record.fingerprint)))
            return found

        method.solve = solve
        edited.edit(self.edits)
        evaluator = Evaluator(edited)
        halves = {
            name: evaluator.score(self.edits[at::2]).to_dict() for at, name in enumerate(("chosen_on", "reported"))
        }
        size = sum(stored.bytes for stored in edited.store.history.edits.values()) / len(self.edits)
        edited.detach()
        return {**halves, "ledger_bytes_per_edit": round(size)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--router", default="meaning", choices=("meaning", "tokens", "mask"))
    parser.add_argument("--files", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS)[:3])
    parser.add_argument("--results", type=Path, default=results_folder() / "small-rows.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = {**provenance(), "threads": 1, "count": args.count, "router": args.router}
    result["bytes_of_8_positions_at_llama_3_8b"] = {
        name: row_bytes(row_form(AssociativeConfig(**FORMS[name])), Assumed()) for name in args.forms
    }
    for file in args.files:
        solved = SolvedEdits(args, file)
        result[file] = {}
        for name in args.forms:
            result[file][name] = solved.scores(FORMS[name])
            print(file, name, json.dumps(result[file][name]), flush=True)
            write_json(args.results, result)


if __name__ == "__main__":
    main()
