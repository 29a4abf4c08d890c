"""Every op at 8B shapes on a GPU, case by case: measured over floor, beside torch's best form, into ops.json.

    python bench/gpu_ops.py [--only mask_overlap masked_linear_ ...]

Each backend's result is compared with the reference before it is timed. Times are of a captured CUDA graph, the L2
cache flushed before each replay (`us`) and hot (`hot_us`); torch's forms are captured too where they never wait for the
host (`torch_us`), else timed call by call. The floor is the bytes that must move over this GPU's own copy bandwidth, or
the operations over the rate of its tensor cores where those take longer. The file is written after every case, so a run
that is cut short leaves what it has.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch_forms
from agreement import differs, listed, own
from agreement import run as outputs_of
from op_cases import CASES
from record import provenance, results_folder, write_json
from rich.console import Console
from rich.table import Table
from timing import copy_bandwidth, device_seconds, graph_seconds

from corrigenda.kernels import dispatch

# Microseconds that are aimed at on an H200: latency-bound cases, whose floor says little.
AIMS = {
    "mask_route[1 of 10,000]": 15,
    "masked_linear_[1 tokens, 1 masks, bfloat16]": 12,
    "ties_merge[4 shards of 58.7M, bfloat16]": 305,
    "associative_read_[64 edits of 8 rows, keys 256]": 10,
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", choices=dispatch.TABLE, default=[])
    return parser.parse_args()


def tensor_core_rate():
    """Operations a second of a large bfloat16 product on random data."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / device_seconds(lambda: a @ b, cold=False, repeats=10)


def backend_row(case, given, expected, backend):
    """Times of one backend, or why there are none."""
    difference = differs(case, expected, outputs_of(case, given, backend))
    if difference:
        return {"wrong": difference}
    with dispatch.use(backend):
        cold, hot = graph_seconds(case.function, *own(case, given))
    return {"us": round(cold * 1e6, 2), "hot_us": round(hot * 1e6, 2)}


def torch_rows(case, given, expected):
    """Microseconds of each of torch's forms, the L2 cache flushed; a form that does not fit this GPU says so."""
    rows = {}
    on_gpu = torch_forms.MASK_OVERLAP_ON_GPU if case.op == "mask_overlap" else {}
    for name, (prepare, run) in {**case.forms, **on_gpu}.items():
        try:
            prepared = prepare(*given)
            difference = differs(case, expected, listed(run(*prepared)))
            rows[name] = {"wrong": difference} if difference else {"torch_us": _form_us(run, prepared)}
            del prepared
        except torch.cuda.OutOfMemoryError:
            rows[name] = {"wrong": "does not fit this GPU's memory"}
        torch.cuda.empty_cache()
    return rows


def _form_us(run, prepared):
    try:
        seconds = graph_seconds(run, *prepared, repeats=20)[0]
    except RuntimeError as error:
        if "captur" not in str(error):
            raise
        torch.cuda.synchronize()
        seconds = device_seconds(lambda: run(*prepared), repeats=20)
    return round(seconds * 1e6, 2)


def measure(case, bandwidth, rate):
    given = case.build("cuda")
    expected = outputs_of(case, given, "reference")
    floor = max(case.floor(*given) / bandwidth, case.operations / rate)
    row = {"bytes": int(case.floor(*given)), "floor_us": round(floor * 1e6, 2), "aim_us": AIMS.get(str(case))}
    for backend in dispatch.impls(case.op, "cuda"):
        if backend != "reference":  # it reads routes on the host
            found = row[backend] = backend_row(case, given, expected, backend)
            if "us" in found:
                found["over_floor"] = round(found["us"] / row["floor_us"], 2)
    row["torch"] = torch_rows(case, given, expected)
    return row


def main():
    args = arguments()
    if not torch.cuda.is_available():
        raise SystemExit("There is no GPU to measure on.")
    torch.set_grad_enabled(False)
    found = {**provenance(), "copy_bytes_per_second": copy_bandwidth(), "tensor_core_rate": tensor_core_rate()}
    rows = {}
    for case in CASES:
        if args.only and case.op not in args.only:
            continue
        start = time.perf_counter()
        try:
            rows[str(case)] = measure(case, found["copy_bytes_per_second"], found["tensor_core_rate"])
        except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
            rows[str(case)] = {"wrong": str(error).splitlines()[0]}
        torch.cuda.empty_cache()
        print(f"{time.perf_counter() - start:5.1f} s  {case}  {rows[str(case)]}", flush=True)
        write_json(results_folder() / "ops.json", {**found, "cases": rows})
    show(rows)


def show(rows):
    table = Table("case", "floor us", "native us", "hot", "triton us", "hot", "best torch us", "aim us")
    for name, row in rows.items():
        if "floor_us" not in row:
            table.add_row(name, row["wrong"])
            continue
        times = [row.get(backend, {}) for backend in ("native", "triton")]
        cells = [str(found.get(key, found.get("wrong", ""))) for found in times for key in ("us", "hot_us")]
        forms = [form["torch_us"] for form in row["torch"].values() if "torch_us" in form]
        table.add_row(name, str(row["floor_us"]), *cells, str(min(forms, default="")), str(row["aim_us"] or ""))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
