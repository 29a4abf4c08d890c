"""Is every answer of vLLM that of one prompt at a time? A table of its features, on a real model and real edits.

    python bench/serving_vllm.py --edits zsre.jsonl                # all rows
    python bench/serving_vllm.py --edits zsre.jsonl --rows eager http

It runs in an environment that has vLLM (a CPU build will do). The reference is transformers, one prompt a pass; a row
is an engine of its own process, and counts the answers whose tokens all equal the reference's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import torch
from record import provenance, results_folder, write_json
from safetensors.torch import save_file
from vllm_server import Server

from corrigenda.editing.base import load_tokenizer
from corrigenda.editing.store.store import EditStore
from corrigenda.serving import Catalogue, ServingSettings

NEW_TOKENS = 12
TEMPLATE = "Question: {prompt}\\nAnswer:"
PREAMBLE = (
    "You answer questions about people, places, books and animals. Answer in as few words as you can. "
    "Do not explain, do not repeat the question, and do not say that you are a language model. "
    "If there are several right answers, give the one that is best known. Write names as they are written in English."
    "\n\n"
)


class Case:
    """The model, the edits, the prompts and what transformers answers to each of them, kept between runs."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.model, self.edits, self.base = work / "model", work / "edits", work / "reference.json"

    def prepare(self, edits_file: Path, count: int) -> None:
        from corrigenda.editing import EditedModel, load_edits
        from corrigenda.editing.base import as_folder, load_base

        torch.set_num_threads(1)
        as_folder("smollm2", self.model)
        edits = load_edits(edits_file, unique_subject=True, limit=count)
        if not self.edits.exists():
            model, tokenizer = load_base(self.model, dtype="float32")
            edited = EditedModel.wrap(model, tokenizer, template=TEMPLATE)
            edited.edit(edits)
            edited.save_pretrained(self.edits)
        if not self.base.exists():
            asked = [edit.prompt for edit in edits[:12]] + [edit.rephrases[0] for edit in edits[12:24]]
            asked += [edit.localities[0].prompt.removeprefix("nq question: ") + "?" for edit in edits[24:32]]
            self._refer(asked)

    def _refer(self, asked: list[str]) -> None:
        from corrigenda.editing import EditedModel
        from corrigenda.editing.base import load_base

        model, tokenizer = load_base(self.model, dtype="float32")
        edited = EditedModel.from_pretrained(model, self.edits, tokenizer=tokenizer)
        plain = [edited.prompts.encode(edited.prompts.wrap(prompt)) for prompt in asked]
        shared = [edited.prompts.encode(PREAMBLE) + ids for ids in plain]
        answers = {"plain": _answers(edited, plain), "shared": _answers(edited, shared)}
        more = edited.prompts.encode("\n\nQuestion: Who was that?\nAnswer:")
        # Long enough that blocks of the prefix cache are filled by answers, which an edit made.
        answers["first turn"] = _answers(edited, plain[:16], 48)
        second = [row["prompt"] + row["tokens"] + more for row in answers["first turn"]]
        answers["second turn"] = _answers(edited, second)
        edited.detach()
        lora = _adapter(self.work / "lora", model)
        _merge(model, lora)
        edited = EditedModel.from_pretrained(model, self.edits, tokenizer=tokenizer)
        answers["lora"] = _answers(edited, plain)
        edited.detach()
        model, _ = load_base(self.model, dtype="float32")
        answers["base"] = [{**row, **_answer(model, row["prompt"])} for row in answers["plain"]]
        self.base.write_text(json.dumps(answers))

    @property
    def reference(self) -> dict:
        return json.loads(self.base.read_text())


def _answers(edited, prompts, unended=0):
    """Greedy answers, one prompt a pass, with the edit that was applied; or `unended` tokens, whatever ends them."""
    rows = []
    for ids in prompts:
        output, sources = edited.generate(
            torch.tensor([ids]),
            max_new_tokens=unended or NEW_TOKENS,
            min_new_tokens=unended,
            do_sample=False,
            provenance=True,
        )
        edit = sources[0].edit
        rows.append(
            {
                "prompt": ids,
                "tokens": output[0, len(ids) :].tolist() if unended else _cut(output[0, len(ids) :].tolist()),
                "edit": edit and edit.id,
            }
        )
    return rows


def _answer(model, ids):
    output = model.generate(torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False)
    return {"tokens": _cut(output[0, len(ids) :].tolist()), "edit": None}


def _cut(tokens, eos=2):
    """An answer without the token that ends it; turns are joined without it."""
    return tokens[: tokens.index(eos)] if eos in tokens else tokens


def _adapter(folder: Path, model) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A LoRA adapter that changes answers, on the edited layer and another: random, for it is only to compose."""
    generator = torch.Generator().manual_seed(0)
    parts, tensors = {}, {}
    for name in ("model.layers.24.mlp.down_proj", "model.layers.10.self_attn.q_proj"):
        linear = model.get_submodule(name)
        a = torch.randn(8, linear.in_features, generator=generator) * 0.05
        b = torch.randn(linear.out_features, 8, generator=generator) * 0.05
        parts[name] = (a, b)
        tensors[f"base_model.model.{name}.lora_A.weight"], tensors[f"base_model.model.{name}.lora_B.weight"] = a, b
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = sorted({name.rsplit(".", 1)[1] for name in parts})
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": targets, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"task_type": "CAUSAL_LM"}))
    return parts


@torch.no_grad()
def _merge(model, adapter) -> None:
    for name, (a, b) in adapter.items():
        model.get_submodule(name).weight += b @ a


# Rows


def engine(case, **options):
    from vllm import LLM

    defaults = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "block_size": 32, "max_num_seqs": 32}
    extra = {"additional_config": {"corrigenda": str(case.edits)}}
    return LLM(str(case.model), **{**defaults, **extra, **options})


def ask(llm, rows, unended=0, **options):
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": row["prompt"]} for row in rows]
    sampling = SamplingParams(max_tokens=unended or NEW_TOKENS, min_tokens=unended, temperature=0)
    outputs = [list(one.outputs[0].token_ids) for one in llm.generate(prompts, sampling, use_tqdm=False, **options)]
    return outputs if unended else [_cut(tokens) for tokens in outputs]


def equal(answers, rows):
    return {"equal": sum(answer == row["tokens"] for answer, row in zip(answers, rows)), "of": len(rows)}


def eager(case):
    """Everything that is on by default: chunked prefill (48 tokens a step) and prefix caching."""
    llm, refer = engine(case, max_num_batched_tokens=48), case.reference
    return {
        "mixed batch, chunks of at most 48 tokens": equal(ask(llm, refer["plain"]), refer["plain"]),
        "64 shared tokens, first time": equal(ask(llm, refer["shared"]), refer["shared"]),
        "64 shared tokens, cached": equal(ask(llm, refer["shared"]), refer["shared"]),
        "first turn, 48 tokens of each answer": equal(ask(llm, refer["first turn"], 48), refer["first turn"]),
        "second turn, over the cached first": equal(ask(llm, refer["second turn"]), refer["second turn"]),
        "one by one": equal([ask(llm, [row])[0] for row in refer["plain"]], refer["plain"]),
    }


def compiled(case):
    llm, refer = engine(case, enforce_eager=False), case.reference
    return {
        "compiled": equal(ask(llm, refer["plain"]), refer["plain"]),
        "compiled, 64 shared tokens, cached": equal([ask(llm, refer["shared"]) for _ in "ab"][1], refer["shared"]),
    }


def preemption(case):
    llm = engine(case, num_gpu_blocks_override=24, disable_log_stats=False)
    rows = case.reference["first turn"]
    answers = ask(llm, rows, 48)
    count = sum(metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions")
    return {f"preempted {'and computed anew' if count else 'never'}": {**equal(answers, rows), "preemptions": count}}


def lora(case):
    from vllm.lora.request import LoRARequest

    llm, refer = engine(case, enable_lora=True, max_lora_rank=8), case.reference
    request = LoRARequest("adapter", 1, str(case.work / "lora"))
    return {
        "LoRA enabled, without an adapter": equal(ask(llm, refer["plain"]), refer["plain"]),
        "with an adapter on the edited layer": equal(ask(llm, refer["plain"], lora_request=request), refer["lora"]),
    }


def speculative(case):
    guess = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}
    llm, refer = engine(case, speculative_config=guess), case.reference
    return {"speculative decoding (n-grams)": equal(ask(llm, refer["first turn"], 48), refer["first turn"])}


def transformers_backend(case):
    llm, rows = engine(case, model_impl="transformers"), case.reference["plain"]
    return {"vLLM's transformers backend": equal(ask(llm, rows), rows)}


def tensor_parallel(case):
    """SmolLM2 has 9 heads: three workers."""
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # a small machine has no NUMA node for each
    llm, rows = engine(case, tensor_parallel_size=3), case.reference["plain"]
    return {"three workers (tensor parallel)": equal(ask(llm, rows), rows)}


def unrouted(case):
    """Unrelated prompts in a batch with edited ones: log-probabilities, bit for bit, and without edits at all."""
    from vllm import SamplingParams

    rows = case.reference["plain"]
    prompts = [{"prompt_token_ids": row["prompt"]} for row in rows]
    sampling = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, logprobs=5, ignore_eos=True)
    found = []
    for options in ({}, {"additional_config": {}}):
        llm = engine(case, enable_prefix_caching=False, **options)
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        found.append(
            [
                [{token: one.logprob for token, one in step.items()} for step in output.outputs[0].logprobs]
                for output, row in zip(outputs, rows)
                if row["edit"] is None
            ]
        )
        del llm
    with_edits, without = found
    same = sum(a == b for a, b in zip(with_edits, without))
    return {"unrouted: log-probabilities bit-equal to the server without edits": {"equal": same, "of": len(without)}}


SERVER = ("--dtype", "float32", "--max-model-len", "512", "--block-size", "32", "--max-num-seqs", "32")


def http(case):
    """A server: 32 requests at once, what it tells of them, and requests that make no sense."""
    rows = case.reference["plain"]
    edits = case.edits.resolve()
    with (
        Server(
            case.model, {"edits": str(edits), "root": str(edits.parent)}, case.work / "server.log", *SERVER
        ) as server,
        ThreadPoolExecutor(32) as clients,
    ):
        found = list(clients.map(lambda row: server.complete(row["prompt"], NEW_TOKENS), rows))
        table = {
            "HTTP, 32 at once": equal([_cut(tokens) for _, tokens, _, _ in found], rows),
            "HTTP, the edit's id in the response": {
                "equal": sum(edit == row["edit"] for (_, _, edit, _), row in zip(found, rows)),
                "of": len(rows),
            },
        }
        streamed = [
            server.call("POST", "/v1/completions", {**asked, "stream": True})[1]["x-corrigenda-edit"]
            for asked in ({"model": "m", "prompt": row["prompt"], "max_tokens": 2} for row in rows[-10:])
        ]
        table["HTTP, the same where it is streamed"] = {
            "equal": sum(edit == (row["edit"] or "-") for edit, row in zip(streamed, rows[-10:])),
            "of": len(streamed),
        }
        metrics = server.call("GET", "/metrics")[2]
        edited = sum(row["edit"] is not None for row in [*rows, *rows[-10:]])
        told = f'corrigenda_requests_total{{outcome="edited",tenant=""}} {edited}.0' in metrics
        wrong = [
            (404, "DELETE", "/v1/edits/nobody", None),
            (403, "POST", "/v1/edits", {"store": "/etc"}),
            (403, "POST", "/v1/edits", {"store": "../../.."}),
            (404, "POST", "/v1/edits", {"store": "missing"}),
            (422, "POST", "/v1/edits", {"store": "model"}),
            (400, "POST", "/v1/edits", {"stor": "x"}),
            (400, "POST", "/v1/edits", b"{"),
            (400, "POST", "/v1/completions", {"model": "m", "prompt": "Hi", "vllm_xargs": {"tenant": "nobody"}}),
            (400, "POST", "/v1/completions", {"model": "m", "prompt": "Hi", "use_beam_search": True, "n": 2}),
        ]
        refused = [(wanted, *server.call(method, path, body)[::2]) for wanted, method, path, body in wrong]
        for wanted, status, answer in refused:
            print(wanted, status, answer)
        after = server.complete(rows[0]["prompt"], NEW_TOKENS)
        return table | {
            "metrics count what was edited": {"equal": int(told), "of": 1},
            "wrong requests, each its status and a sentence": {
                "equal": sum(wanted == status and "message" in str(answer) for wanted, status, answer in refused),
                "of": len(wrong),
            },
            "and the server goes on": equal([_cut(after[1])], rows[:1]),
        }


def stream(case, requests=1000):
    """Requests while edits are undone, redone and loaded: each answer is right for the version that decided it."""
    refer, answers = case.reference, {}
    for edited, base in zip(refer["plain"], refer["base"]):
        answers[tuple(edited["prompt"])] = {edited["edit"]: edited["tokens"], None: base["tokens"]}
    folder = case.work / "changing"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(case.edits, folder)
    asked = [row for row in refer["plain"] if row["edit"] is not None][:16] + refer["plain"][-8:]
    changing = sorted({row["edit"] for row in asked if row["edit"]})
    applied = {1: {edit.id for edit in Ledger.applied(folder)}}
    problems, counts, waits, stop = [], Counter(), [], threading.Event()

    def change(server) -> None:
        random.seed(0)
        while not stop.is_set():
            edit = random.choice(changing)
            status, _, answer = server.call("DELETE", f"/v1/edits/{edit}")
            calls = [("undo", status, answer)]
            Ledger.redo(folder, edit)
            start = time.perf_counter()
            calls.append(("load", *server.call("POST", "/v1/edits", {"store": str(folder.resolve())})[::2]))
            waits.append(time.perf_counter() - start)
            for kind, status, answer in calls:
                counts[kind] += 1
                if status != 200:
                    problems.append((kind, status, answer))
                    return
                before = applied[max(applied)]
                applied[answer["version"]] = (before | set(answer["added"])) - set(answer["removed"])

    def one(number: int):
        row = asked[number % len(asked)]
        return row, server.complete(row["prompt"], NEW_TOKENS)

    with (
        Server(case.model, {"edits": str(folder)}, case.work / "stream-server.log", *SERVER) as server,
        ThreadPoolExecutor(24) as clients,
    ):
        writer = threading.Thread(target=change, args=(server,))
        writer.start()
        found = list(clients.map(one, range(requests)))
        stop.set()
        writer.join()
    failed, right = len(problems), 0
    for row, (status, tokens, edit, version) in found:
        expected = row["edit"] if row["edit"] in applied.get(version, ()) else None
        if status == 200 and edit != expected:
            # Which edits are in moves the threshold a little: a question near it may go either way.
            expected = decided(case, applied[version], row["prompt"])
        good = status == 200 and edit == expected and _cut(tokens) == answers[tuple(row["prompt"])].get(edit)
        right += good
        if not good:
            problems.append((status, tokens, edit, expected, version))
    print(*problems[:20], sep="\n")
    versions = len({version for _, (_, _, _, version) in found})
    return {
        "requests while edits change": {"equal": right, "of": requests, "versions": versions, **counts},
        "changes without an error": {
            "equal": sum(counts.values()) - failed,
            "of": sum(counts.values()),
            "median_seconds_under_load": round(statistics.median(waits), 3),
        },
    }


def decided(case, applied, prompt):
    """What a catalogue decides where just these edits are in."""
    folder = case.work / "then"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(case.edits, folder)
    store = EditStore.open(folder, write=True)
    store.undo([edit for edit in Ledger.applied(folder) if edit.id not in applied])
    store.close()
    found = Catalogue(load_tokenizer(case.model), ServingSettings.parse(folder)).admit(prompt).edit
    return found and found.id


class Ledger:
    """A store as another process sees it."""

    @staticmethod
    def applied(folder):
        store = EditStore.open(folder)
        try:
            return [store.history.edits[seq] for seq in store.history.applied()]
        finally:
            store.close()

    @staticmethod
    def redo(folder, edit) -> None:
        store = EditStore.open(folder, write=True)
        try:
            store.redo(store.selected([edit]))
        finally:
            store.close()


ROWS = {
    row.__name__: row
    for row in (
        eager,
        compiled,
        preemption,
        lora,
        speculative,
        transformers_backend,
        tensor_parallel,
        unrouted,
        http,
        stream,
    )
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--edits", type=Path, required=True, help="a file of at least 60 edits")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--work", type=Path, default=Path("bench-work/serving"))
    parser.add_argument("--results", type=Path, default=results_folder() / "serving-vllm.json")
    parser.add_argument("--one", choices=list(ROWS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    case = Case(args.work)
    if args.one:
        (args.work / f"{args.one}.json").write_text(json.dumps(ROWS[args.one](case)))
        return
    case.prepare(args.edits, args.count)
    found = {**provenance(), "edits": args.count}
    # Rows that are not asked for stay as they were measured before, each with its commit.
    table = json.loads(args.results.read_text())["rows"] if args.results.exists() else {}
    failed = []
    for row in args.rows:
        command = [sys.executable, __file__, "--edits", str(args.edits), "--work", str(args.work), "--one", row]
        with open(args.work / f"{row}.log", "w") as log:
            status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
        part = json.loads((args.work / f"{row}.json").read_text()) if status == 0 else {row: {"failed": status}}
        for name, result in part.items():
            print(f"{name:70s} {result}", flush=True)
            if result.get("equal") != result.get("of") or "failed" in result:
                failed.append(name)
        table |= {name: {**result, "commit": found["commit"]} for name, result in part.items()}
    write_json(args.results, {**found, "rows": table})
    if failed:
        sys.exit(f"Not equal: {'; '.join(failed)}. Logs are in {args.work}.")


if __name__ == "__main__":
    main()
