"""Many edits with room for a few: is every answer that of a model with all rows in place, and what moves?

    OMP_NUM_THREADS=1 python bench/paging.py --edits 10000 --requests 1000 --room 64

The edits are those of `opening.py`: made up, with random rows, of a small model with SmolLM2's tokenizer. A few are
asked for often and most seldom (the n-th with a weight of 1/n), and a fifth of the requests is about none; both models
get the same, `--batch` at a time, and the texts of their answers are compared. Thread seconds.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

import torch
from opening import small_model, write
from record import provenance, results_folder, seconds, write_json

from corrigenda.editing import EditedModel

UNEDITED = "Which rivers flow into the Black Sea?"


def asked(edited, requests, unedited):
    """Prompts, in a chance order."""
    chance = random.Random(0)
    prompts = [stored.prompt for stored in edited.edits.stored]
    chance.shuffle(prompts)
    chosen = chance.choices(prompts, [1 / (n + 1) for n in range(len(prompts))], k=requests - unedited)
    found = [*chosen, *[UNEDITED] * unedited]
    chance.shuffle(found)
    return found


def answers(edited, prompts, size):
    """Of each prompt the answer's text; and thread seconds a request."""
    rows = [edited.prompts.encode(edited.prompts.wrap(prompt)) for prompt in prompts]
    found, start = [], seconds()
    for at in range(0, len(rows), size):
        part = rows[at : at + size]
        found += [answer.text for answer in edited.answer_ids(part, [3] * len(part), size)]
    return found, (seconds() - start) / len(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--edits", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--room", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--folder", type=Path, help="edits that `opening.py --scratch` left")
    parser.add_argument("--results", type=Path, default=results_folder() / "paging.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch) / "edits"
        if not folder.exists():
            write(folder, args.edits)
        models = {}
        for name, room in (("all rows in place", None), ("room for a few", args.room)):
            model, tokenizer = small_model()
            models[name] = EditedModel.from_pretrained(model, folder, tokenizer=tokenizer, resident=room)
        models["all rows in place"].method.bring_all()
        prompts = asked(models["all rows in place"], args.requests, args.requests // 5)
        found, times = {}, {}
        for name, edited in models.items():
            found[name], times[name] = answers(edited, prompts, args.batch)
    every, few = found.values()
    counts = models["room for a few"].paging
    result = {
        "edits": len(models["room for a few"].edits),
        "requests": len(prompts),
        "room": args.room,
        "about_an_edit": counts.hits + counts.reads,
        "different_answers": len(set(every)),
        "answers_that_differ": sum(one != other for one, other in zip(every, few)),
        **vars(counts),
        "resident_at_the_end": len(models["room for a few"].method.memory.paged),
        "ms_per_request": {name: round(1e3 * each, 2) for name, each in times.items()},
    }
    print(result)
    write_json(args.results, {**provenance(), "threads": 1, "batch": args.batch, **result})


if __name__ == "__main__":
    main()
