"""How long it takes to open many edits, from the folder to the first answer: one process each, on one thread.

    OMP_NUM_THREADS=1 python bench/opening.py --sizes 10000 100000

The edits are made up and have random rows, of a model that is small but for its vocabulary, SmolLM2's: what opening
costs besides reading rows does not depend on their width, and rows are read when they are asked for. Each folder is
opened in a process of its own that has loaded the model before; the least of `--rounds` is kept.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from made_up import random_rows
from record import provenance, results_folder, write_json
from store import QUESTION, SYLLABLES
from transformers import LlamaConfig, LlamaForCausalLM

from corrigenda.editing import AssociativeConfig, Edit, EditedModel
from corrigenda.editing.backbone.loading import load_tokenizer
from corrigenda.editing.model.why import explained


def named_edits(count):
    """Questions about names of two words each, as people's are."""
    chance = random.Random(0)
    for number in range(count):
        name = " ".join("".join(chance.choice(SYLLABLES) for _ in range(3)).capitalize() for _ in range(2))
        kind = chance.choice(["birthplace", "spouse", "employer", "profession", "instrument"])
        yield Edit(f"What is the {kind} of {name}?", f"answer {number}", id=f"edit-{number:06d}")


def small_model():
    """A random LLaMA of width 64 with SmolLM2's tokenizer."""
    tokenizer = load_tokenizer("smollm2")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).float().eval(), tokenizer


def write(folder, count):
    """A ledger of so many edits; their vectors are random too, for the encoder takes 6 ms a text."""
    model, tokenizer = small_model()
    edited = EditedModel.wrap(model, tokenizer, AssociativeConfig(batch_size=1000), template=QUESTION)
    generator = torch.Generator().manual_seed(1)
    encoder, router = edited.method.router.encoder, edited.method.router
    with random_rows(edited):
        encode = encoder.encode
        encoder.encode = lambda texts: torch.nn.functional.normalize(
            torch.randn(len(texts), encoder.width, generator=generator), dim=-1
        )
        try:
            edited.edit(named_edits(count), store=folder)
        finally:
            encoder.encode = encode
    edited.detach()
    return router.size


def resident_mb():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def opened(folder):
    """What opening takes, in this process: seconds of its own time, and of the clock until a question is answered."""
    model, tokenizer = small_model()
    warm = EditedModel.wrap(model, tokenizer, template=QUESTION)  # loads the encoder
    warm.method.router.decide(["What is the capital of Kazakhstan?"])
    warm.detach()
    before = resident_mb()
    start, own = time.perf_counter(), time.process_time()
    edited = EditedModel.from_pretrained(model, folder, tokenizer=tokenizer)
    opening, opening_own = time.perf_counter() - start, time.process_time() - own
    asked = next(iter(named_edits(8))).prompt
    answered_by = edited.method.routes([asked]).route.tolist()[0]
    edited.answer([asked], 2)
    ready, ready_own = time.perf_counter() - start, time.process_time() - own
    held = resident_mb() - before
    router, history = edited.method.router, edited.store.history
    edits = [history.edits[seq] for seq in history.applied()]
    why = []
    for _ in range(7):
        start = time.thread_time()
        explained(router, [asked], edits)
        why.append(time.thread_time() - start)
    return {
        "answered_by": answered_by,
        "open_seconds": round(opening_own, 3),
        "first_answer_seconds": round(ready_own, 3),
        "first_answer_wall_seconds": round(ready, 3),
        "open_wall_seconds": round(opening, 3),
        "resident_mb": round(held, 1),
        "why_ms": round(1e3 * min(why), 2),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="keeps the folders here, for another run")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=results_folder() / "opening.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.open:
        print(json.dumps(opened(args.open)))
        return
    rows = {}
    with tempfile.TemporaryDirectory() as temporary:
        for size in args.sizes:
            folder = (args.scratch or Path(temporary)) / str(size)
            if not folder.exists():
                write(folder, size)
            runs = []
            for _ in range(args.rounds):
                command = [sys.executable, __file__, "--open", str(folder)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                runs.append(json.loads(done.stdout.splitlines()[-1]))
            best = min(runs, key=lambda run: run["first_answer_seconds"])
            stored = sum(file.stat().st_size for file in folder.iterdir())
            rows[size] = {**best, "disk_bytes_per_edit": round(stored / size)}
            print(size, rows[size], flush=True)
    write_json(args.results, {**provenance(), "threads": 1, "rounds": args.rounds, "edits": rows})


if __name__ == "__main__":
    main()
