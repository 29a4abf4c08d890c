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
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import vllm_http
import vllm_offline
from record import provenance, results_folder, write_json
from serving_case import Case

ROWS = {
    row.__name__: row
    for row in (
        *(vllm_offline.eager, vllm_offline.compiled, vllm_offline.preemption, vllm_offline.lora),
        *(vllm_offline.speculative, vllm_offline.transformers_backend, vllm_offline.tensor_parallel),
        *(vllm_offline.unrouted, vllm_http.http, vllm_http.stream),
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
