"""What edits cost a server: tokens a second with many edits loaded, beside the same server without Corrigenda.

    python bench/serving_throughput.py --edits-dir DIR --pairs 10

Both servers run at once and are asked in turn, so that a pair shares whatever else the machine does. Half the requests
are about edits, half are unrelated; all generate the same number of tokens, whatever ends them, and come in the same
order. Needs an environment with vLLM.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from record import provenance, results_folder, write_json
from vllm_server import Server

from corrigenda.editing import as_folder
from corrigenda.editing.backbone.background import background_prompts
from corrigenda.editing.backbone.loading import load_tokenizer
from corrigenda.editing.edits.prompts import PromptFormat
from corrigenda.editing.model import saving


def run(server, prompts, tokens, clients):
    """The seconds that a list of prompts takes, and how many of them an edit answered."""
    start = time.perf_counter()
    found = list(clients.map(lambda ids: server.complete(ids, tokens, ignore_eos=True), prompts))
    seconds = time.perf_counter() - start
    if any(status != 200 or len(answer) != tokens for status, answer, _, _ in found):
        raise RuntimeError(f"A request failed; see {server.log}.")
    return seconds, sum(edit is not None for _, _, edit, _ in found)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--edits-dir", type=Path, required=True, help="a folder of edits of SmolLM2")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--options", default="--dtype float32", help="of vLLM's server")
    parser.add_argument("--work", type=Path, default=Path("bench-work/serving"))
    parser.add_argument("--results", type=Path, default=results_folder() / "serving-throughput.json")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    model = as_folder("smollm2", args.work / "model")
    saved = saving.read(args.edits_dir)
    prompts = PromptFormat(load_tokenizer(model), saved.prompts["template"], saved.prompts["chat"])
    half = args.requests // 2
    about = [edit.prompt for edit in saved.edits]
    saved.close()
    unrelated = background_prompts()
    options = ["--max-model-len", "512", "--max-num-seqs", str(args.requests), *shlex.split(args.options)]
    ratios, rates, edited = [], [], 0
    with (
        Server(model, {"edits": str(args.edits_dir)}, args.work / "with.log", *options) as ours,
        Server(model, None, args.work / "without.log", *options) as base,
        ThreadPoolExecutor(args.requests) as clients,
    ):
        for pair in range(args.pairs + 1):
            asked = [
                prompts.encode(prompts.wrap(texts[(pair * half + i) % len(texts)]))
                for i in range(half)
                for texts in (about, unrelated)
            ]
            # Each first once and last once, so that what the machine does meanwhile weighs on both.
            order = (ours, base, base, ours) if pair % 2 else (base, ours, ours, base)
            seconds = {ours: 0.0, base: 0.0}
            for server in order:
                took, routed = run(server, asked, args.tokens, clients)
                seconds[server] += took
                edited += routed if pair else 0
            if pair == 0:  # the first compiles and fills caches
                continue
            count = 2 * args.requests * args.tokens
            rates.append([round(count / seconds[ours], 1), round(count / seconds[base], 1)])
            ratios.append(seconds[base] / seconds[ours])
            print(f"{pair:3d}  {rates[-1][0]:8.1f} with, {rates[-1][1]:8.1f} without: {ratios[-1]:.4f}", flush=True)
    ordered = sorted(ratios)
    # Of ten, the second and the ninth enclose the true median with a probability of .98.
    result = {
        **provenance(),
        "edits": len(about),
        "requests": args.requests,
        "tokens_each": args.tokens,
        "options": options,
        "edited_share": edited / (2 * args.requests * args.pairs),
        "tokens_per_second_with_and_without": rates,
        "median_ratio": round(statistics.median(ratios), 4),
        "interval": [round(ordered[1], 4), round(ordered[-2], 4)] if len(ordered) > 3 else None,
    }
    write_json(args.results, result)
    print(result["median_ratio"], result["interval"])


if __name__ == "__main__":
    main()
