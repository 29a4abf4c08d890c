"""How much faster the native ops are than torch on a CPU: writes bench/results/cpu-claims.json, `{op: ratio}`.

    OMP_NUM_THREADS=1 python bench/claims.py          (or: make bench-claims)

One process, one thread, thread time, minimum of many. An op is compared with the fastest of several eager forms
(`torch_forms.py`), each given ready-made what a user would keep between calls; that form under `torch.compile` stands
beside it. The table goes to bench/results/cpu/claims.json, for every instruction set that the processor has.
"""

from __future__ import annotations

import argparse

import agreement
import torch
from agreement import differs, listed
from op_cases import FULL, associative_read, mask_overlap, masked_linear, ties_merge, topk_mask
from record import ROOT, provenance, results_folder, write_json
from rich.console import Console
from rich.table import Table
from timing import thread_seconds

from corrigenda.kernels import dispatch, native

CLAIMS = {
    "topk_mask": topk_mask(32, torch.bfloat16),
    "mask_overlap": mask_overlap(1, 10_000),
    "masked_linear": masked_linear(1, 1),
    "associative_read": associative_read(32),
    "ties_merge": ties_merge(4, FULL, torch.float32),
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", choices=CLAIMS, default=list(CLAIMS))
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes minutes")
    return parser.parse_args()


def measure(case, compile, instruction_sets=("amx", "avx512", "avx2", "baseline")):
    given = case.build("cpu")
    expected = agreement.run(case, given, "reference")
    difference = differs(case, expected, agreement.run(case, given, "native"))
    if difference:
        raise SystemExit(f"{case} is wrong, and is not timed: {difference}")
    budget = 10.0 if case.op == "ties_merge" else 3.0
    row = {"case": case.name, "torch_ms": {}, "native_ms": {}}
    for name, (prepare, run) in case.forms.items():
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
    row["gigabytes_per_second"] = case.floor(*given) / row["native_ms"][used] / 1e6
    if compile:
        prepare, run = case.forms[best]
        compiled = torch.compile(run, dynamic=False)
        row["compiled_ms"] = 1e3 * thread_seconds(compiled, *prepare(*given), least=3, budget=budget)
    return row


def main():
    args = arguments()
    if native.absent("cpu"):
        raise SystemExit(f"There is nothing to compare: {native.absent('cpu')}.")
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    rows = {op: measure(CLAIMS[op], not args.no_compile) for op in args.only}
    show(rows)
    used = torch.ops.corrigenda_native.cpu_instructions()
    write_json(results_folder() / "claims.json", {**provenance(), "instructions": used, "ops": rows})
    if set(rows) == set(CLAIMS):
        ratios = {op: round(row["ratio"], 2) for op, row in rows.items()}
        write_json(ROOT / "bench/results/cpu-claims.json", ratios)


def show(rows):
    table = Table("op", "case", "best torch form", "torch ms", "compiled ms", "native ms", "ratio", "GB/s")
    for op, row in rows.items():
        best = min(row["torch_ms"], key=row["torch_ms"].get)
        compiled = f"{row['compiled_ms']:.2f}" if "compiled_ms" in row else ""
        times = f"{row['torch_ms'][best]:.2f}", compiled, f"{min(row['native_ms'].values()):.3f}"
        table.add_row(op, row["case"], best, *times, f"{row['ratio']:.1f}", f"{row['gigabytes_per_second']:.1f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
