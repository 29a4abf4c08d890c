"""How much faster the native ops are than torch on a CPU: writes bench/results/cpu-claims.json, `{op: ratio}`.

    OMP_NUM_THREADS=1 python bench/claims.py          (or: make bench-claims)

One process, one thread, thread time, minimum of many. An op is compared with the fastest of several eager forms
(`torch_forms.py`; the reference where that has none), each given ready-made what a user would keep between calls; and
with that form under `torch.compile`. Beside it stands the byte floor: the bytes that any implementation must move, at
the rate at which this thread reads as many (or 1 GB, if that is less) again and again. The table goes to
bench/results/cpu/claims.json, for every instruction set that the processor has, and with `--only` beside what stands
there of this machine for the other ops; the last column says where an op is
neither three times as fast as `torch.compile` nor within 70 % of its floor.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import agreement
import torch
from agreement import differs, listed
from op_cases import (
    FULL,
    adapter_linear,
    associative_read,
    delta_linear,
    label_losses,
    mask_overlap,
    mask_route,
    masked_linear,
    masked_sgd,
    nearest_key,
    ties_merge,
    token_overlap,
    topk_mask,
)
from record import ROOT, provenance, results_folder, write_json
from rich.console import Console
from rich.table import Table
from timing import thread_seconds

from corrigenda.kernels import dispatch, native, reference

CLAIMS = {
    "topk_mask": topk_mask(32, torch.bfloat16),
    "mask_overlap": mask_overlap(1, 10_000),
    "mask_route": mask_route(1, 10_000),
    "token_overlap": token_overlap(1, 100_000),
    "nearest_key": nearest_key(1, 1000),
    "masked_linear": masked_linear(1, 1),
    "associative_read": associative_read(32),
    "adapter_linear": adapter_linear(32),
    "ties_merge": ties_merge(4, FULL, torch.float32),
    "masked_sgd": masked_sgd(64),
    "delta_linear": delta_linear(1, 1),
    "label_losses": label_losses(16),
}
TIMES_COMPILED, OF_FLOOR = 3.0, 0.7
"""What a claim asks for: either."""


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", choices=CLAIMS, default=list(CLAIMS))
    parser.add_argument("--budget", type=float, default=3.0, help="seconds for each time; three times as many for ties")
    parser.add_argument("--name", default="claims", help="of the result file, for a part on another processor")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes minutes")
    return parser.parse_args()


def read_gigabytes_per_second(size, budget):
    """How fast this thread reads `size` bytes, 1 GB at most, again and again: from caches where they fit."""
    read = torch.ones(max(1, int(min(size, 2**30)) // 4))
    return 4e-9 * read.numel() / thread_seconds(read.sum, least=3, budget=budget)


def instruction_sets():
    """Those of the project's kernels that this processor runs, and what it says of itself that they are chosen by."""
    select = torch.ops.corrigenda_native.select_cpu_instructions
    runs = [name for name in ("amx", "avx512", "avx2", "baseline") if select(name)]
    select("auto")
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    named = [flag for flag in flags.split() if flag.startswith(("avx", "amx", "fma", "f16c", "popcnt"))]
    return {"run": runs, "flags": named}


def forms_of(case):
    """The ways to write an op in torch; the plain reference where there is no better one."""
    name = case.op.removesuffix("_")
    return case.forms or {"the reference": (lambda *given: given, getattr(reference, name))}


def measure(case, compile, instruction_sets=("amx", "avx512", "avx2", "baseline"), budget=3.0):
    given = case.build("cpu")
    moved = case.floor(*given)
    readable = read_gigabytes_per_second(moved, budget / 3)
    expected = agreement.run(case, given, "reference")
    difference = differs(case, expected, agreement.run(case, given, "native"))
    if difference:
        raise SystemExit(f"{case} is wrong, and is not timed: {difference}")
    budget *= 3 if case.op == "ties_merge" else 1
    forms, row = forms_of(case), {"case": case.name, "torch_ms": {}, "native_ms": {}}
    for name, (prepare, run) in forms.items():
        prepared = prepare(*given)
        difference = differs(case, expected, listed(run(*prepared)))
        if difference:
            raise SystemExit(f"The form {name!r} of {case} is wrong, and is not timed: {difference}")
        row["torch_ms"][name] = 1e3 * thread_seconds(run, *prepared, least=3, budget=budget)
        del prepared
    best = min(row["torch_ms"], key=row["torch_ms"].get)
    for instructions in instruction_sets:
        if torch.ops.corrigenda_native.select_cpu_instructions(instructions):
            with dispatch.use("native"):
                row["native_ms"][instructions] = 1e3 * thread_seconds(case.function, *given, least=5, budget=budget)
    torch.ops.corrigenda_native.select_cpu_instructions("auto")
    used = torch.ops.corrigenda_native.cpu_instructions()
    row["ratio"] = row["torch_ms"][best] / row["native_ms"][used]
    row["ratios"] = {name: row["torch_ms"][best] / value for name, value in row["native_ms"].items()}
    row["gigabytes_per_second"] = moved / row["native_ms"][used] / 1e6
    # Twice, minutes apart: other work on a small machine takes a half of the bandwidth now and then.
    row["readable_gigabytes_per_second"] = max(readable, read_gigabytes_per_second(moved, budget / 3))
    row["floor_ms"] = moved / row["readable_gigabytes_per_second"] / 1e6
    row["of_floor"] = {name: row["floor_ms"] / value for name, value in row["native_ms"].items()}
    if compile:
        prepare, run = forms[best]
        compiled = torch.compile(run, dynamic=False)
        row["compiled_ms"] = 1e3 * thread_seconds(compiled, *prepare(*given), least=3, budget=budget)
        row["times_compiled"] = {name: row["compiled_ms"] / value for name, value in row["native_ms"].items()}
    row["short"] = [name for name in row["native_ms"] if short(row, name)]
    return row


def short(row, instructions):
    """Whether an instruction set falls short of what a claim asks for."""
    times = row.get("times_compiled", {}).get(instructions, 0.0)
    return times < TIMES_COMPILED and row["of_floor"][instructions] < OF_FLOOR


def main():
    args = arguments()
    if native.absent("cpu"):
        raise SystemExit(f"There is nothing to compare: {native.absent('cpu')}.")
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    path, found, rows = results_folder() / f"{args.name}.json", provenance(), {}
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if any(earlier.get(name) != found[name] for name in ("device", "cores", "versions")):
        earlier = {"ops": {}}
    for op in args.only:
        row = measure(CLAIMS[op], not args.no_compile, budget=args.budget)
        rows[op] = {**row, "date": found["date"], "commit": found["commit"]}
        whole = {op: rows.get(op) or earlier["ops"].get(op) for op in CLAIMS if op in rows or op in earlier["ops"]}
        used = torch.ops.corrigenda_native.cpu_instructions()
        write_json(path, {**found, "instructions": used, "instruction_sets": instruction_sets(), "ops": whole})
    show(rows)
    if set(rows) == set(CLAIMS):
        ratios = {op: round(row["ratio"], 2) for op, row in rows.items()}
        write_json(ROOT / "bench/results/cpu-claims.json", ratios)


def show(rows):
    table = Table("op", "case", "best torch form", "torch ms", "compiled ms", "native ms", "ratio", "of floor", "short")
    console = Console(width=140)
    console.print(f"{provenance()['device']}: {', '.join(instruction_sets()['run'])}")
    for op, row in rows.items():
        best = min(row["torch_ms"], key=row["torch_ms"].get)
        compiled = f"{row['compiled_ms']:.2f}" if "compiled_ms" in row else ""
        floor = f"{max(row['of_floor'].values()):.0%}"
        times = f"{row['torch_ms'][best]:.2f}", compiled, f"{min(row['native_ms'].values()):.3f}"
        table.add_row(op, row["case"], best, *times, f"{row['ratio']:.1f}", floor, ", ".join(row["short"]))
    console.print(table)


if __name__ == "__main__":
    main()
