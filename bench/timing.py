"""Timing that other work on the machine disturbs least."""

from __future__ import annotations

import time

import torch

FLUSH_BYTES = 256 * 2**20  # more than any L2 cache: an H200 has 60 MB
HOT_CALLS = 20  # in one graph: a replay's own 2 to 3 us are then shared out


def thread_seconds(run, *arguments, least=5, budget=2.0):
    """The least CPU time of one thread that a call took, of at least `least` calls and about `budget` seconds."""
    run(*arguments)
    best, spent, calls = float("inf"), 0.0, 0
    while calls < least or spent < budget:
        start = time.thread_time()
        run(*arguments)
        took = time.thread_time() - start
        best, spent, calls = min(best, took), spent + took, calls + 1
    return best


def captured(run, *arguments, calls=1):
    """A CUDA graph of so many calls, after warm-up on a side stream: proves that a call never waits for the host."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(*arguments)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run(*arguments)
    return graph


def device_seconds(run, cold=True, repeats=50):
    """Median seconds of a call on the GPU, by events; `cold` flushes the L2 cache before each."""
    flush = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device="cuda") if cold else None
    times = []
    for _ in range(repeats):
        if cold:
            flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return sorted(times)[len(times) // 2]


def graph_seconds(run, *arguments, repeats=50):
    """Seconds of a call captured in a CUDA graph: with the L2 cache flushed before it, and hot, after other calls."""
    cold = device_seconds(captured(run, *arguments).replay, repeats=repeats)
    hot = device_seconds(captured(run, *arguments, calls=HOT_CALLS).replay, cold=False, repeats=repeats) / HOT_CALLS
    return cold, hot


def copy_bandwidth():
    """Bytes a second that a large copy on this GPU reads and writes together."""
    source = torch.empty(2**30 // 4, dtype=torch.int32, device="cuda").zero_()
    target = torch.empty_like(source)
    seconds = min(device_seconds(lambda: target.copy_(source), cold=False, repeats=20) for _ in range(3))
    return 2 * source.numel() * 4 / seconds
