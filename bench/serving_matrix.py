"""Every way in which transformers may run a served model, beside each prompt alone: which give the same tokens.

    CORRIGENDA_DATA=... OMP_NUM_THREADS=1 python bench/serving_matrix.py

The reference is an edited model asked one prompt at a time, whole, greedily, in fp32. Prompts are rephrasings of ZsRE
edits and questions that no edit is about, mixed. The control shares blocks that were made under an edit, which serving
never does: where it does not differ, the row beside it shows little. Exits 1 unless every other row is equal.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from record import provenance, results_folder, write_json
from transformers import CompileConfig, ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.requests import RequestState

from corrigenda.editing import AssociativeConfig, EditedModel, load_edits
from corrigenda.editing.backbone.loading import load_base
from corrigenda.serving.batching import ServedModel
from corrigenda.serving.continuous import BatchedRequests

TEMPLATE = r"Question: {prompt}\nAnswer:"
NEW = 10
EACH = 6
PREFIX = 64


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    data = os.environ.get("CORRIGENDA_DATA", ".")
    parser.add_argument("--edits", type=Path, default=Path(data) / "zsre.jsonl")
    parser.add_argument("--others", type=Path, default=Path(data) / "nq_open.jsonl", help="JSON Lines with `question`")
    parser.add_argument("--count", type=int, default=60, help="how many edits are written")
    parser.add_argument("--store", type=Path, help="a folder to keep them in; one that is there is used again")
    parser.add_argument("--model", default="smollm2")
    return parser.parse_args()


class Reference:
    """The edited model, one prompt at a time."""

    def __init__(self, model, tokenizer, store):
        self.edited = EditedModel.from_pretrained(model, store, tokenizer=tokenizer)

    def ids(self, prompt):
        return self.edited.prompts.encode(self.edited.prompts.wrap(prompt))

    def alone(self, row, **options):
        output, (source,) = self.edited.generate(
            torch.tensor([row]), max_new_tokens=NEW, do_sample=False, provenance=True, **options
        )
        return output[0, len(row) :].tolist(), source.edit and source.edit.id

    def answers(self, rows, **options):
        return [self.alone(row, **options) for row in rows]


class Matrix:
    """Rows of the table: each a way to run the model, with how many sequences were equal to the reference."""

    def __init__(self, served):
        self.served = served
        self.rows = []

    def row(self, name, run, expected, **note):
        """run: gives tokens and edits, as `expected` has them."""
        start = time.perf_counter()
        found = run()
        seconds = time.perf_counter() - start
        tokens, edits = (sum(a[i] == b[i] for a, b in zip(found, expected)) for i in (0, 1))
        of = len(expected)
        edited = sum(edit is not None for _, edit in expected)
        extra = {key: value() if callable(value) else value for key, value in note.items()}
        self.rows.append({"row": name, "of": of, "edited": edited, "tokens": tokens, "edits": edits, **extra})
        print(f"{name:52} tokens {tokens}/{of}  edits {edits}/{of}  {seconds:6.1f} s  {extra or ''}", flush=True)

    def generate(self, rows, **options):
        """Left-padded together, as transformers' `generate`."""
        tokenizer = self.served.tokenizer
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        width = max(map(len, rows))
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        output, found = self.served.generate(
            ids,
            attention_mask=mask,
            provenance=True,
            **{"max_new_tokens": NEW, "do_sample": False, "pad_token_id": pad, **options},
        )
        return list(zip(_ended(output[:, width:].tolist(), tokenizer.eos_token_id), _ids(found)))

    def batch(self, rows, generation=None, **settings):
        """Through continuous batching, all at once."""
        outputs, found = self.served.generate_batch(
            rows,
            max_new_tokens=NEW,
            provenance=True,
            generation_config=generation or _greedy(self.served),
            continuous_batching_config=_config(**settings),
        )
        return list(zip([output.generated_tokens for output in outputs.values()], _ids(found.values())))

    def one_after_another(self, rows, generation=None, **settings):
        """Through a manager that goes on running, so that each prompt finds the blocks of those before it."""
        manager = self.served.model.init_continuous_batching(
            generation_config=generation or _greedy(self.served), continuous_batching_config=_config(**settings)
        )
        manager.start()
        try:
            found = [manager.get_result(manager.add_request(row, max_new_tokens=NEW), timeout=300) for row in rows]
        finally:
            manager.stop()
        return [(output.generated_tokens, _edit(self.served, row)) for output, row in zip(found, rows)]


def _greedy(served, ends=None):
    """ends: -1 for answers that go on after their end, so that they fill blocks."""
    ends = served.model.generation_config.eos_token_id if ends is None else ends
    return GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=ends)


def _config(**settings):
    return ContinuousBatchingConfig(**{"max_batch_tokens": 512, "num_blocks": 256, "page_size": 16, **settings})


def _ids(admissions):
    return [one.edit and one.edit.id for one in admissions]


def _edit(served, row):
    found = served.catalogue.admit(row)
    return found.edit and found.edit.id


def _ended(rows, end):
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


@contextlib.contextmanager
def seen(owner, name):
    """Within: the results of a method, in a list."""
    original, found = getattr(owner, name), []

    def call(*given):
        found.append(original(*given))
        return found[-1]

    setattr(owner, name, call)
    try:
        yield found
    finally:
        setattr(owner, name, original)


@contextlib.contextmanager
def unguarded():
    """Within: blocks that edited answers complete are shared like any other."""
    original = BatchedRequests._blocks_to_share
    BatchedRequests._blocks_to_share = lambda self, mark, *given: mark(*given)
    try:
        yield
    finally:
        BatchedRequests._blocks_to_share = original


def prompts(path, others):
    """Rephrasings of edits, and questions about other things, in turn."""
    edits = load_edits(path, unique_subject=True, limit=EACH * 3)
    asked = [edit.rephrases[0] for edit in edits[::3]]
    lines = others.read_text(encoding="utf-8").splitlines()[:EACH]
    unrelated = [json.loads(line)["question"] + "?" for line in lines]
    return [prompt for pair in zip(asked, unrelated) for prompt in pair]


def write_store(args, model, tokenizer, store):
    edited = EditedModel.wrap(model, tokenizer, AssociativeConfig(), template=TEMPLATE)
    edited.edit(load_edits(args.edits, unique_subject=True, limit=args.count))
    edited.save_pretrained(store)
    edited.detach()


def fill(matrix, known):
    """known: the reference's answers to each list of prompts, by what is asked of them."""
    (rows, reference), beams = known["prompts"], known["beams"]
    generate, batch = matrix.generate, matrix.batch
    matrix.row("generate, one prompt a call", lambda: [generate([row])[0] for row in rows], reference)
    matrix.row("generate, left-padded batch", lambda: generate(rows), reference)
    matrix.row(
        "generate, prompt lookup",
        lambda: [generate([row], prompt_lookup_num_tokens=3)[0] for row in rows],
        reference,
    )
    matrix.row("generate, prefill_chunk_size=5", lambda: generate(rows, prefill_chunk_size=5), reference)
    matrix.row("generate, static cache", lambda: generate(rows, cache_implementation="static"), reference)
    compiled = CompileConfig(fullgraph=True, mode=None, backend="aot_eager")
    compiled._compile_all_devices = True
    matrix.row(
        "generate, static cache, compiled decode (fullgraph)",
        lambda: generate(rows, cache_implementation="static", compile_config=compiled),
        reference,
    )
    matrix.row("generate, 3 beams", lambda: generate(beams[0], num_beams=3), beams[1])
    matrix.row("generate_batch, prompts in one pass", lambda: batch(rows), reference)
    for budget in (16, 7):
        matrix.row(
            f"generate_batch, prompts split ({budget} tokens a pass)",
            lambda budget=budget: batch(rows, max_batch_tokens=budget),
            reference,
        )
    matrix.row("generate_batch, without block sharing", lambda: batch(rows, allow_block_sharing=False), reference)
    with seen(RequestState, "create_equivalent_initial_request") as renewed:
        endless = _greedy(matrix.served, -1)
        matrix.row(
            "generate_batch, few blocks: requests start anew",
            lambda: batch(rows, generation=endless, page_size=4, num_blocks=36, safety_margin=0.0),
            known["endless"][1],
            started_anew=lambda: len(renewed),
        )
    forks = _greedy(matrix.served)
    forks.num_return_sequences = 3
    matrix.row(
        "generate_batch, 3 sequences a prompt (forks)",
        lambda: batch(rows, generation=forks),
        [answer for answer in reference for _ in range(3)],
    )
    matrix.row(
        "generate_batch, compiled passes",
        lambda: batch(rows, varlen_compile_config=CompileConfig(mode=None, backend="aot_eager"), max_batch_tokens=64),
        reference,
    )
    prefixed, expected = known["prefixed"]
    for name, run in (
        (f"generate_batch, a shared prefix of {PREFIX} tokens", lambda: batch(prefixed)),
        (f"a running manager, a shared prefix of {PREFIX} tokens", lambda: matrix.one_after_another(prefixed)),
    ):
        with seen(PagedAttentionCache, "search_prefix_match") as hits:
            matrix.row(name, run, expected, tokens_shared=lambda hits=hits: sum(hits))
    turns, answers = known["turns"]

    def talk():
        return matrix.one_after_another(turns, generation=endless, page_size=4, num_blocks=1024)

    with seen(PagedAttentionCache, "search_prefix_match") as hits:
        matrix.row(
            "a running manager, turn 2 with turn 1's answer in it", talk, answers, tokens_shared=lambda: sum(hits)
        )
    with unguarded(), seen(PagedAttentionCache, "search_prefix_match") as hits:
        matrix.row(
            "control: the same with the answers' blocks shared",
            talk,
            answers,
            tokens_shared=lambda: sum(hits),
            control=True,
        )


def alone_without_edits(model, row):
    output = model.generate(torch.tensor([row]), max_new_tokens=NEW, do_sample=False)
    return output[0, len(row) :].tolist()


def main():
    args = arguments()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        store = args.store or Path(folder) / "edits"
        model, tokenizer = load_base(args.model, dtype="float32")
        if not store.exists():
            write_store(args, model, tokenizer, store)
        reference = Reference(model, tokenizer, store)
        rows = [reference.ids(prompt) for prompt in prompts(args.edits, args.others)]
        known = {"prompts": (rows, reference.answers(rows))}
        known["beams"] = rows[:4], reference.answers(rows[:4], num_beams=3)
        known["endless"] = rows, reference.answers(rows, eos_token_id=None)
        text = "Here is what was said before anything was asked, which is of no use for the answer. " * 9
        prefixed = [tokenizer(text)["input_ids"][:PREFIX] + row for row in rows]
        known["prefixed"] = prefixed, reference.answers(prefixed)
        again = tokenizer("\n")["input_ids"] + reference.ids("What was the answer to the question before?")
        first = [(row, new) for row, (new, edit) in zip(rows, known["endless"][1]) if edit is not None]
        turns = [turn for row, new in first for turn in (row, row + new + again)]
        known["turns"] = turns, reference.answers(turns, eos_token_id=None)
        edits = len(reference.edited.edits)
        reference.edited.detach()
        base = [alone_without_edits(model, row) for row in rows]
        changed = sum(new != unedited for (new, _), unedited in zip(known["prompts"][1], base))
        matrix = Matrix(ServedModel(model, tokenizer, store))
        fill(matrix, known)
        matrix.served.detach()
    equal = all(row["tokens"] == row["edits"] == row["of"] for row in matrix.rows if "control" not in row)
    write_json(
        results_folder() / "serving-matrix-transformers.json",
        {
            **provenance(),
            "model": args.model,
            "dtype": "float32",
            "edits": edits,
            "new_tokens": NEW,
            "answers_that_edits_change": changed,
            "all_equal_but_the_control": equal,
            "rows": matrix.rows,
        },
    )
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
