"""Measures which launch configurations are fastest on this GPU: `python -m corrigenda.kernels.tuner`.

A module apart from `tuning.py`: run by `-m` it is not the one that others import, and what it sets has to be read by
the launchers.
"""

import contextlib
import functools
import itertools
import json
import multiprocessing
import os

import torch

from . import triton_backend, tuning, tuning_cases

# What is tried for a variant, every combination; a parameter that is not named keeps its value.
CANDIDATES = {
    "topk_mask": {
        "pool": {"BLOCK_T": [4, 8, 16], "BLOCK_D": [256, 512, 1024], "num_warps": [4, 8]},
        "select_16384": {"num_warps": [16, 32]},
    },
    "mask_overlap": {
        "few": {"BLOCK_N": [4, 8, 16], "BLOCK_W": [128, 512], "num_warps": [2, 4, 8]},
        "many": {"BLOCK_Q": [32, 64], "BLOCK_N": [64, 128], "BLOCK_W": [2, 4], "num_warps": [4, 8]},
    },
    "nearest_key": {"nearest": {"BLOCK_N": [4, 8, 16], "BLOCK_D": [256, 512], "num_warps": [2, 4, 8]}},
    "token_overlap": {"match": {"BLOCK_N": [16, 32, 64], "BLOCK_L": [32, 64], "num_warps": [2, 4]}},
    "masked_linear": {
        "one": {"BLOCK_K": [16, 32, 64], "BLOCK_O": [256, 512], "WORDS": [8, 16, 32], "num_warps": [4, 8]},
        "few": {"BLOCK_K": [32, 64], "BLOCK_O": [64, 128], "WORDS": [16, 32], "num_stages": [2, 3, 4]},
        "many": {"BLOCK_K": [32, 64], "BLOCK_O": [128, 256], "num_warps": [4, 8], "num_stages": [2, 3, 4]},
        "input_gradient": {"BLOCK_I": [32, 64, 128], "BLOCK_K": [32, 64], "num_stages": [2, 3, 4]},
        "memory_gradient": {"BLOCK_I": [64, 128], "BLOCK_O": [64, 128], "num_warps": [4, 8]},
    },
    "associative_read": {
        "fused": {"BLOCK_D": [128, 256], "BLOCK_O": [256, 512, 1024], "num_warps": [2, 4, 8]},
        "score": {"BLOCK_D": [128, 256, 512], "num_warps": [2, 4, 8]},
        "read": {"BLOCK_O": [128, 256, 512], "num_warps": [2, 4, 8]},
    },
    "adapter_linear": {
        "read": {"RANKS": [2, 4, 8], "BLOCK_D": [128, 256, 512], "BLOCK_O": [256, 512, 1024], "num_warps": [2, 4, 8]}
    },
    "ties_merge": {
        "count": {"BLOCK": [1024, 2048, 4096], "num_warps": [4, 8]},
        "merge": {"BLOCK": [1024, 2048, 4096], "num_warps": [4, 8]},
    },
    "masked_sgd": {
        "step": {"BLOCK_T": [32, 64], "BLOCK_I": [64, 128], "BLOCK_O": [64, 128], "num_warps": [4, 8]},
        "step_float32": {"BLOCK_T": [16, 32], "BLOCK_I": [64, 128], "BLOCK_O": [64, 128], "num_warps": [4, 8]},
    },
    "delta_linear": {
        "few": {"BLOCK_K": [64, 128], "BLOCK_O": [64, 128], "num_stages": [3, 4]},
        "many": {"BLOCK_K": [32, 64], "BLOCK_O": [128, 256], "num_warps": [4, 8], "num_stages": [3, 4]},
        "few_float32": {"BLOCK_K": [32, 64], "BLOCK_O": [64, 128], "num_stages": [3, 4]},
        "many_float32": {"BLOCK_K": [16, 32], "BLOCK_O": [64, 128], "num_warps": [4, 8], "num_stages": [2, 3]},
        "distance": {"BLOCK_O": [512, 1024, 2048], "num_warps": [4, 8]},
    },
}


def candidates(kernel, variant, current):
    """Every configuration to try for a variant, the current one first."""
    choices = CANDIDATES.get(kernel, {}).get(variant, {})
    yield current
    for values in itertools.product(*choices.values()):
        candidate = {**current, **dict(zip(choices, values))}
        if candidate != current:
            yield candidate


def tune(device, jobs):
    """Time every candidate on the cases of `tuning_cases.py`; yield (kernel, variant, what was fastest)."""
    from triton.testing import do_bench

    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("the tuner times kernels and cannot run while a CUDA graph is captured")
    entries = tuning.table(tuning.gpu_name(device))
    cases = tuning_cases.timed()
    every = [list(candidates(kernel, variant, entries[kernel][variant])) for kernel, variant, *_ in cases]
    tasks = [(case, candidate) for case, tried in enumerate(every) for candidate in tried]
    # 310 compilations of a second each: side by side they leave the timing a minute.
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        pool.map(_compile, tasks, chunksize=4)
    for (kernel, variant, op, make), tried in zip(cases, every):
        arguments, times = make(device), []
        for candidate in tried:
            call = _configured(kernel, variant, op, candidate, device)
            try:
                time = do_bench(functools.partial(call, *arguments), warmup=10, rep=40, return_mode="median")
                times.append((time, candidate))
            except Exception as error:  # a tile that does not fit this GPU; Triton has no one class for that
                print(f"{kernel} {variant} {candidate}: {str(error).splitlines()[0]}")
        time, fastest = min(times, key=lambda pair: pair[0], default=(0.0, tried[0]))
        _configured(kernel, variant, op, fastest, device)
        if times:
            print(f"{kernel} {variant}: {times[0][0] * 1000:.1f} -> {time * 1000:.1f} us, {fastest}", flush=True)
            yield kernel, variant, fastest


def _configured(kernel, variant, op, candidate, device):
    """The op by Triton, with this configuration in place of the variant's own."""
    tuning.table(tuning.gpu_name(device))[kernel][variant] = candidate
    tuning.config.cache_clear()
    return triton_backend.call(op)


def _compile(task):
    """In a process of its own: run a candidate once, which leaves what was compiled in Triton's cache."""
    case, candidate = task
    kernel, variant, op, make = tuning_cases.timed()[case]
    device = torch.device("cuda", torch.cuda.current_device())
    with contextlib.suppress(Exception):  # the tuner meets it again and prints it
        _configured(kernel, variant, op, candidate, device)(*make(device))


def main():
    if not torch.cuda.is_available():
        raise SystemExit("the tuner times kernels on a GPU, and torch sees none")
    device = torch.device("cuda", torch.cuda.current_device())
    path = tuning.FOLDER / f"{tuning.gpu_name(device)}.json"
    best = {}
    for kernel, variant, fastest in tune(device, jobs=min(12, os.cpu_count() or 1)):
        best.setdefault(kernel, {})[variant] = fastest
        path.write_text(json.dumps(best, indent=4) + "\n")  # a run that is cut short leaves what it has
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
