"""Loss and gradient at SmolLM2's head by count of labels: the native op beside torch's forms; thread time, one thread.

    OMP_NUM_THREADS=1 python bench/head.py

The forms take turns, so that other work on the machine slows all alike; of each the least time counts. `auto` says
which backend runs where none is named; `error` is that of the gradient, relative to float64.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch_forms
from record import provenance, results_folder, write_json

from corrigenda.kernels import dispatch, native

WIDTH, VOCABULARY = 576, 49152
LABELS = (1, 4, 8, 16, 32, 64, 128, 256)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=results_folder() / "head.json")
    parser.add_argument("--budget", type=float, default=6.0, help="seconds of each row")
    args = parser.parse_args()
    if native.absent("cpu"):
        raise SystemExit(f"There is nothing to compare: {native.absent('cpu')}.")
    torch.set_num_threads(1)
    forms = {name: run for name, (_, run) in torch_forms.LABEL_LOSSES.items()}
    forms["native"] = native.call("label_losses")
    rows = []
    for dtype in DTYPES:
        weight = (torch.randn(VOCABULARY, WIDTH) / WIDTH**0.5).to(dtype)
        for count in LABELS:
            given = 3 * torch.randn(count, WIDTH), weight, torch.randint(VOCABULARY, (count,))
            rows.append(measure(forms, (given[0].to(dtype), *given[1:]), args.budget))
            print(rows[-1], flush=True)
    used = torch.ops.corrigenda_native.cpu_instructions()
    write_json(args.results, {**provenance(), "threads": 1, "instructions": used, "rows": rows})


def measure(forms, given, budget):
    hidden, weight, labels = given
    logits = hidden.double() @ weight.double().T
    expected = torch.softmax(logits, 1) @ weight.double() - weight.double()[labels]
    errors = {name: float((run(*given)[1].double() - expected).norm() / expected.norm()) for name, run in forms.items()}
    best = dict.fromkeys(forms, float("inf"))
    start = time.perf_counter()
    while time.perf_counter() - start < budget:
        for name, run in forms.items():
            before = time.thread_time()
            run(*given)
            best[name] = min(best[name], time.thread_time() - before)
    row = next(row for row in dispatch.TABLE["label_losses"] if not row.absent("cpu") and row.pays(*given))
    return {
        "dtype": str(weight.dtype).removeprefix("torch."),
        "labels": len(labels),
        "auto": row.backend,
        "ms": {name: round(1e3 * seconds, 1) for name, seconds in best.items()},
        "error": {name: float(f"{error:.1e}") for name, error in errors.items()},
    }


if __name__ == "__main__":
    main()
