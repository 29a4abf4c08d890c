"""What a store costs: bytes an edit, appending, opening, `why`, undo, with many associative edits of SmolLM2's shape.

    OMP_NUM_THREADS=1 python bench/store.py --edits 10000

These edits are made up (unique names, 6 answer positions); the base model is the real one. With `--stream FILE`, 200
real edits are written and ten of them taken out again; `--memoir N` writes the first N also as MEMOIR's, whole and at
bounded rank: quality against bytes an edit; and takes an eighth of them out again. `--only PART...` measures parts of
an existing result again, and says so in it.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from made_up import random_rows
from record import provenance, results_folder, write_json

from corrigenda.editing import Edit, EditedModel, Evaluator, MemoirConfig, load_edits
from corrigenda.editing.backbone.loading import load_base
from corrigenda.editing.model.why import explained
from corrigenda.editing.store.store import EditStore

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


def associative(model, tokenizer, count):
    with tempfile.TemporaryDirectory() as scratch:
        return stored(model, tokenizer, count, Path(scratch) / "edits")


def stored(model, tokenizer, count, folder):
    edited = EditedModel.wrap(model, tokenizer)
    appended = []
    with random_rows(edited):
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
    why = min(timed(lambda: explained(router, [edits[7].prompt], edits))[0] for _ in range(5))
    edited.write_into(folder)
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


def undo(model, tokenizer, edits, count, config=None):
    """Some of many edits taken out: do they answer as the base model again, and what do the others lose?"""
    edited = EditedModel.wrap(model, tokenizer, config, template=QUESTION)
    gone = set(random.Random(0).sample(range(len(edits)), count))
    asked = [edits[number].prompt for number in gone] + [edits[number].rephrases[0] for number in gone]
    base = edited.generate_text(asked, 12)
    edited.edit(edits)
    evaluator = Evaluator(edited)
    whole = evaluator.score(edits)
    before = [scores for number, scores in enumerate(evaluator.by_edit) if number not in gone]
    edited.undo([edits[number].id for number in gone])
    answers = edited.answer(asked, 12)
    same = [found.text == text for found, text in zip(answers, base)]
    after = evaluator.score([edit for number, edit in enumerate(edits) if number not in gone])
    sizes = [stored.body["tensors"]["bytes"] for stored in edited.store.history.edits.values()]
    edited.detach()
    return {
        "edits": len(edits),
        "bytes_per_edit": round(sum(sizes) / len(edits)),
        "rel": whole.rel,
        "gen": whole.gen,
        "undone": count,
        "undone_that_answer_as_the_base": sum(same[:count]),
        "undone_that_answer_as_the_base_rephrased": sum(same[count:]),
        "withdrawn_prompts": sum(found.provenance.withdrawn is not None for found in answers),
        "rel_of_the_others_before": sum(scores["rel"] for scores in before) / len(before),
        "rel_of_the_others_after": after.rel,
        "gen_of_the_others_before": sum(scores["gen"] for scores in before) / len(before),
        "gen_of_the_others_after": after.gen,
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
    parser.add_argument("--only", nargs="+", metavar="PART", choices=("associative", "undo", "memoir", "undo_memoir"))
    parser.add_argument("--results", type=Path, default=results_folder() / "store.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_base("smollm2")
    parts = {"associative": lambda: associative(model, tokenizer, args.edits)}
    if args.stream:
        edits = [
            replace(edit, id=edit.id or f"edit-{number:05d}")
            for number, edit in enumerate(load_edits(args.stream, unique_subject=True, limit=200))
        ]
        parts["undo"] = lambda: undo(model, tokenizer, edits, 10)
        if args.memoir:
            few = edits[: args.memoir]
            parts["memoir"] = lambda: memoir(model, tokenizer, few)
            parts["undo_memoir"] = lambda: undo(model, tokenizer, few, args.memoir // 8, MemoirConfig())
    now = provenance()
    result = json.loads(args.results.read_text(encoding="utf-8")) if args.only else now
    for name, measure in parts.items():
        if args.only and name not in args.only:
            continue
        result[name] = measure()
        if args.only:
            result.setdefault("measured_later", {})[name] = {key: now[key] for key in ("date", "commit")}
        write_json(args.results, result)
    print(result)


if __name__ == "__main__":
    main()
