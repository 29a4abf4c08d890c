"""What a store costs: bytes an edit, appending, opening, `why`, undo, with many associative edits of SmolLM2's shape.

    OMP_NUM_THREADS=1 python bench/store.py --edits 10000

The edits are made up (unique names, 6 answer positions); the base model is the real one. `--memoir N` also writes N
real MEMOIR edits, whole and at bounded rank, for bytes an edit.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from made_up import unsolved
from record import provenance, results_folder, write_json

from corrigenda.editing import Edit, EditedModel, MemoirConfig
from corrigenda.editing.base import load_base
from corrigenda.editing.demo_facts import demo_edits
from corrigenda.editing.store.store import EditStore
from corrigenda.editing.store.why import explained

SYLLABLES = ["ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "wo", "xu", "ya", "ze"]


def made_up_edits(count):
    chance = random.Random(0)
    for number in range(count):
        name = "".join(chance.choice(SYLLABLES) for _ in range(5)).capitalize()
        kind = chance.choice(["capital", "founder", "mayor", "anthem", "currency"])
        yield Edit(f"What is the {kind} of {name}?", f"answer {number}", id=f"edit-{number:06d}")


def timed(action):
    start = time.perf_counter()
    value = action()
    return time.perf_counter() - start, value


def associative(model, tokenizer, count, folder):
    edited = EditedModel.wrap(model, tokenizer)
    appended = []
    with unsolved(edited):
        edited.edit(made_up_edits(count), store=folder, on_progress=lambda p: appended.append(p.seconds))
    batches = [after - before for before, after in zip([0.0, *appended], appended)]
    tenth = max(1, len(batches) // 10)
    median = [sorted(part)[len(part) // 2] for part in (batches[1 : tenth + 1], batches[-tenth:])]
    edited.detach()
    size = sum(file.stat().st_size for file in folder.iterdir())
    opening, store = timed(lambda: EditStore.open(folder))
    store.close()
    loading, edited = timed(lambda: EditedModel.from_pretrained(model, folder, tokenizer=tokenizer))
    router = edited.method.router
    router.decide(["warm up"])
    edits = [edited.store.history.edits[seq] for seq in edited.store.history.applied()]
    why = min(timed(lambda: explained(router, [router.fingerprint(edits[7].prompt)], edits))[0] for _ in range(5))
    edited.attach(folder)
    undoing = [timed(lambda n=n: edited.undo(f"edit-{n:06d}"))[0] for n in random.Random(1).sample(range(count), 10)]
    redoing, _ = timed(lambda: edited.redo(author=None, since="2000"))
    edited.detach()
    return {
        "edits": count,
        "bytes_per_edit": round(size / count),
        "append_ms_per_edit_first_tenth": round(1000 * median[0] / 16, 3),
        "append_ms_per_edit_last_tenth": round(1000 * median[1] / 16, 3),
        "open_ledger_seconds": round(opening, 3),
        "load_into_memory_seconds": round(loading, 3),
        "why_ms": round(1000 * why, 2),
        "undo_ms_median": round(1000 * sorted(undoing)[5], 2),
        "redo_of_10_seconds": round(redoing, 3),
    }


def memoir(model, tokenizer, count):
    rows = []
    for rank in (None, 64, 16):
        edited = EditedModel.wrap(model, tokenizer, replace(MemoirConfig(), record_rank=rank))
        edited.edit(demo_edits()[:count])
        sizes = [stored.body["tensors"]["bytes"] for stored in edited.store.history.edits.values()]
        scores = edited.evaluate()
        rows.append({"rank": rank, "bytes_per_edit": round(sum(sizes) / count), "rel": scores.rel, "gen": scores.gen})
        edited.detach()
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--edits", type=int, default=10_000)
    parser.add_argument("--memoir", type=int, default=0)
    parser.add_argument("--results", type=Path, default=results_folder() / "store.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_base("smollm2")
    scratch = Path(tempfile.mkdtemp())
    try:
        result = {**provenance(), "associative": associative(model, tokenizer, args.edits, scratch / "edits")}
    finally:
        shutil.rmtree(scratch)
    if args.memoir:
        result["memoir"] = memoir(model, tokenizer, args.memoir)
    print(result)
    write_json(args.results, result)


if __name__ == "__main__":
    main()
