"""pytest-benchmark over op x backend x case: `make bench`; `make bench-compare` against the committed baseline.

A case whose result is wrong is not timed. Times are of one thread's CPU, or on a GPU of a captured graph (`device_us`
with L2 flushed, `hot_us` without); beside each stand the bytes that must move and what part of the time they explain.
"""

from __future__ import annotations

import time

import pytest
import torch
from agreement import wrong
from op_cases import CASES
from record import provenance
from timing import copy_bandwidth, graph_seconds

from corrigenda.kernels import dispatch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PAIRS = [
    pytest.param(case, backend, id=f"{case}-{backend}")
    for case in CASES
    if case.small or DEVICE == "cuda"
    for backend in dispatch.impls(case.op, DEVICE)
    if not (DEVICE == "cpu" and backend == "triton")  # interpreted: nobody waits for that
]


@pytest.fixture(scope="session")
def bandwidth():
    return copy_bandwidth() if DEVICE == "cuda" else None


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("case, backend", PAIRS)
def test_op(case, backend, benchmark, bandwidth):
    arguments = case.build(DEVICE)
    difference = wrong(case, arguments, backend)
    assert not difference, f"{case} on {backend} differs from the reference: {difference}"
    floor = case.floor(*arguments)
    benchmark.extra_info.update(provenance(), bytes=int(floor), backend=backend)
    benchmark.group = str(case)
    with dispatch.use(backend), torch.no_grad():
        if DEVICE == "cpu":
            benchmark._timer = time.thread_time
            benchmark.pedantic(case.function, arguments, rounds=10, warmup_rounds=1)
            benchmark.extra_info["gigabytes_per_second"] = floor / benchmark.stats.stats.min / 1e9
            return
        benchmark.pedantic(lambda: (case.function(*arguments), torch.cuda.synchronize()), rounds=20, warmup_rounds=3)
        if backend == "reference":  # it reads routes on the host, so it cannot be captured
            return
        cold, hot = graph_seconds(case.function, *arguments)
        benchmark.extra_info.update(
            device_us=cold * 1e6,
            hot_us=hot * 1e6,
            floor_us=floor / bandwidth * 1e6,
            measured_over_floor=cold / (floor / bandwidth),
            teraflops=case.operations / cold / 1e12,
        )
