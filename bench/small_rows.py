"""Quality against bytes an edit: rows whole and kept small, each form written as a user writes it.

    OMP_NUM_THREADS=1 python bench/small_rows.py --data FOLDER --counts 300 150 150

The edits of each file are solved anew for each form, which rounds values before it sees whether an edit holds, and then
asked. Nothing is chosen on the records: the forms were there before. Keys are read in none of these scores, where
tokens tell which row comes next: `--router mask` reads them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from record import provenance, results_folder, write_json
from simulate_fleet import Assumed, row_bytes

from corrigenda.editing import AssociativeConfig, EditedModel, Evaluator, load_base, load_edits
from corrigenda.editing.methods.associative.config import row_form

QUESTION = "Question: {prompt}\\nAnswer:"
FILES = {"zsre.jsonl": QUESTION, "counterfact.jsonl": "{prompt}", "qaedit.jsonl": QUESTION}
FORMS = {
    "whole": {"key_dimensions": None, "value_dtype": "model"},
    "bfloat16, keys of 256": {"key_dimensions": 256, "value_dtype": "bfloat16"},
    "int8, keys of 256": {"key_dimensions": 256, "value_dtype": "int8"},
    "model's type, keys of 256": {"key_dimensions": 256, "value_dtype": "model"},
    "model's type, keys of 64": {"key_dimensions": 64, "value_dtype": "model"},
}


def scores(base, template, edits, settings):
    """The scores of edits that are all written, in one form; the bytes of an edit's entry here, and unsolved ones."""
    edited = EditedModel.wrap(*base, AssociativeConfig(**settings), template=template)
    edited.edit(edits)
    stored = edited.store.history.edits.values()
    found = Evaluator(edited).score(edits).to_dict()
    edited.detach()
    size = sum(one.bytes for one in stored) / len(stored)
    return {**found, "ledger_bytes_per_edit": round(size), "unsolved": sum(one.unsolved for one in stored)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--counts", type=int, nargs="+", default=[300, 150, 150], help="edits of each of --files")
    parser.add_argument("--router", default="meaning", choices=("meaning", "tokens", "mask"))
    parser.add_argument("--files", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=["whole", "int8, keys of 256"])
    parser.add_argument("--results", type=Path, default=results_folder() / "small-rows.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = {**provenance(), "threads": 1, "router": args.router}
    result["bytes_of_8_positions_at_llama_3_8b"] = {
        name: row_bytes(row_form(AssociativeConfig(**FORMS[name])), Assumed()) for name in args.forms
    }
    for file, count in zip(args.files, args.counts, strict=True):
        edits = load_edits(args.data / file, unique_subject=True, limit=count)
        base = load_base(args.model)
        result[file] = {}
        for name in args.forms:
            result[file][name] = scores(base, FILES[file], edits, {**FORMS[name], "router": args.router})
            print(file, name, json.dumps(result[file][name]), flush=True)
            write_json(args.results, result)


if __name__ == "__main__":
    main()
