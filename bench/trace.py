"""What the GPU does in each op and in a patched layer, by torch's profiler: kernels, their times, waits for the host.

    python bench/trace.py

For machines without nsys. Every op runs eagerly here, where a wait for the host would show as a call of the runtime
(in a CUDA graph it cannot exist at all); writes trace.json: per op and backend the kernels of one call and the waits,
of which there must be none.
"""

from __future__ import annotations

from collections import Counter

import torch
from layer import decoding
from made_up import filled_banks
from op_cases import CASES, OUTPUTS, WIDTH
from record import provenance, results_folder, write_json
from torch.profiler import ProfilerActivity, profile, record_function

from corrigenda.editing.model.layer import EditedOutput
from corrigenda.kernels import dispatch

CALLS = 5
CALLED = "the calls"
WAITS = ("Synchronize", "_local_scalar_dense", "Memcpy DtoH")


def traced(run, *arguments):
    """Kernels of a call (launches and microseconds, by name) and how often the host waited in it."""
    for _ in range(3):
        run(*arguments)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        with record_function(CALLED):
            for _ in range(CALLS):
                run(*arguments)
        torch.cuda.synchronize()
    events = profiler.events()
    called = next(event.time_range for event in events if event.name == CALLED)
    kernels, launches, waits = Counter(), Counter(), Counter()
    for event in events:
        if event.device_type == torch.autograd.DeviceType.CUDA and event.name != CALLED:
            kernels[event.name] += event.device_time_total / CALLS
            launches[event.name] += 1 / CALLS
        if any(wait in event.name for wait in WAITS) and called.start <= event.time_range.start <= called.end:
            waits[event.name] += 1
    return {
        "kernels": [
            {"name": name[:120], "launches": round(launches[name], 1), "us": round(time, 2)}
            for name, time in kernels.most_common()
        ],
        "waits_for_the_host": dict(waits),
    }


def first_cases():
    """The first case of each op: how it is launched does not depend on the size alone, but waits would show in any."""
    return {case.op: case for case in reversed(CASES)}.values()


def main():
    if not torch.cuda.is_available():
        raise SystemExit("There is no GPU to trace.")
    torch.set_grad_enabled(False)
    rows = {}
    for case in first_cases():
        given = case.build("cuda")  # of an op that writes in place, no result is looked at
        for backend in dispatch.impls(case.op, "cuda"):
            if backend != "reference":  # it reads routes on the host
                with dispatch.use(backend):
                    rows[f"{case} {backend}"] = traced(case.function, *given)
    device = torch.device("cuda")
    base = torch.nn.Linear(WIDTH, OUTPUTS, bias=False, device=device, dtype=torch.bfloat16)
    context, _ = decoding(64, 0.5, 1000, device)
    base.register_forward_hook(EditedOutput(filled_banks(1000, WIDTH, OUTPUTS, device), context))
    x = torch.randn(64, WIDTH, device=device, dtype=torch.bfloat16)
    rows["a patched layer, 64 tokens, half of them edited"] = traced(base, x)
    write_json(results_folder() / "trace.json", {**provenance(), "calls": rows})
    waiting = [name for name, row in rows.items() if row["waits_for_the_host"]]
    for name, row in rows.items():
        print(name, row["waits_for_the_host"] or "no wait", [(k["name"][:50], k["us"]) for k in row["kernels"][:4]])
    if waiting:
        raise SystemExit(f"The host is waited for in: {', '.join(waiting)}.")


if __name__ == "__main__":
    main()
