"""What a store costs: bytes an edit, appending, opening, `why`, undo, with many associative edits of SmolLM2's shape.

    OMP_NUM_THREADS=1 python bench/store.py --edits 10000

These edits are made up (unique names, 6 answer positions); the base model is the real one. With `--stream FILE`, 200
real edits are written and ten of them taken out again; `--memoir N` writes the first N also as MEMOIR's, whole and at
bounded rank: quality against bytes an edit.
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

from corrigenda.editing import Edit, EditedModel, Evaluator, MemoirConfig, load_edits
from corrigenda.editing.base import load_base
from corrigenda.editing.store.store import EditStore
from corrigenda.editing.store.why import explained

QUESTION = "Question: {prompt}\\nAnswer:"
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


def undo_of_ten(model, tokenizer, edits):
    """Ten of many edits taken out: do they answer as the base model again, and what do the others lose?"""
    edited = EditedModel.wrap(model, tokenizer, template=QUESTION)
    prompts = [edit.prompt for edit in edits]
    base = edited.generate_text(prompts, 12)
    edited.edit(edits)
    evaluator = Evaluator(edited)
    whole = evaluator.score(edits)
    gone = set(random.Random(0).sample(range(len(edits)), 10))
    edited.undo([edits[number].id for number in gone])
    answers = edited.generate_text([prompts[number] for number in gone], 12)
    kept = [edit for number, edit in enumerate(edits) if number not in gone]
    before = [scores for number, scores in enumerate(evaluator.by_edit) if number not in gone]
    after = evaluator.score(kept)
    sizes = [stored.body["tensors"]["bytes"] for stored in edited.store.history.edits.values()]
    edited.detach()
    return {
        "edits": len(edits),
        "bytes_per_edit": round(sum(sizes) / len(edits)),
        "rel": whole.rel,
        "gen": whole.gen,
        "undone": len(gone),
        "undone_that_answer_as_the_base": sum(base[number] == answer for number, answer in zip(gone, answers)),
        "rel_of_the_others_before": sum(scores["rel"] for scores in before) / len(before),
        "rel_of_the_others_after": after.rel,
        "free_rel_of_the_others_after": after.free_rel,
    }


def memoir(model, tokenizer, edits):
    rows = []
    for rank in (None, 64, 16):
        edited = EditedModel.wrap(model, tokenizer, MemoirConfig(record_rank=rank), template=QUESTION)
        edited.edit(edits)
        sizes = [stored.body["tensors"]["bytes"] for stored in edited.store.history.edits.values()]
        scores = Evaluator(edited, free=False).score(edits)
        rows.append(
            {"rank": rank, "bytes_per_edit": round(sum(sizes) / len(edits)), "rel": scores.rel, "gen": scores.gen}
        )
        edited.detach()
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--edits", type=int, default=10_000)
    parser.add_argument("--stream", type=Path, help="a file of at least 200 edits")
    parser.add_argument("--memoir", type=int, default=0, help="how many of them to write with MEMOIR too")
    parser.add_argument("--results", type=Path, default=results_folder() / "store.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_base("smollm2")
    scratch = Path(tempfile.mkdtemp())
    try:
        result = {**provenance(), "associative": associative(model, tokenizer, args.edits, scratch / "edits")}
    finally:
        shutil.rmtree(scratch)
    write_json(args.results, result)
    if args.stream:
        edits = [
            replace(edit, id=edit.id or f"edit-{number:05d}")
            for number, edit in enumerate(load_edits(args.stream, unique_subject=True, limit=200))
        ]
        result["undo"] = undo_of_ten(model, tokenizer, edits)
        write_json(args.results, result)
        if args.memoir:
            result["memoir"] = memoir(model, tokenizer, edits[: args.memoir])
            write_json(args.results, result)
    print(result)


if __name__ == "__main__":
    main()
