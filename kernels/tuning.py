"""Launch configurations as data: tile sizes, warps and stages per kernel and variant, one JSON file per GPU.

`configs/default.json` holds an entry for every variant; `configs/<GPU name>.json` replaces those that were measured
on that GPU. A launcher picks its variant by shapes alone and looks the entry up here: nothing is timed on the call
path, so nothing synchronises and a CUDA graph can be captured. `python -m corrigenda.kernels.tuning` measures.
"""

import functools
import itertools
import json
from pathlib import Path

import torch

FOLDER = Path(__file__).with_name("configs")

# On a CPU kernels are interpreted, program by program: few are fast, but some, so that splits are tested.
INTERPRETED_MULTIPROCESSORS = 8

# What the tuner tries for a variant, every combination; a parameter that is not named keeps its value.
CANDIDATES = {
    "topk_mask": {
        "pool": {"BLOCK_T": [4, 8, 16], "BLOCK_D": [256, 512, 1024], "num_warps": [4, 8]},
        "select_16384": {"num_warps": [16, 32]},
    },
    "mask_overlap": {
        "few": {"BLOCK_N": [4, 8, 16], "BLOCK_W": [128, 512], "num_warps": [2, 4, 8]},
        "many": {"BLOCK_Q": [32, 64], "BLOCK_N": [64, 128], "BLOCK_W": [2, 4], "num_warps": [4, 8]},
    },
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


@functools.cache
def gpu_name(device):
    """The name under which configurations for `device` are filed."""
    return torch.cuda.get_device_name(device).replace(" ", "_") if device.type == "cuda" else "default"


@functools.cache
def table(name):
    """{kernel: {variant: configuration}} for a GPU: its own file's entries, and the default's where it has none."""
    entries = json.loads((FOLDER / "default.json").read_text())
    path = FOLDER / f"{name}.json"
    if path.exists():
        for kernel, variants in json.loads(path.read_text()).items():
            entries[kernel].update(variants)
    return entries


@functools.cache
def config(kernel, variant, device):
    """The keyword arguments with which `kernel` is launched on `device` in the named variant."""
    return table(gpu_name(device))[kernel][variant]


@functools.cache
def multiprocessors(device):
    """How many programs run at once at least: what a launcher fills by splitting its work."""
    if device.type != "cuda":
        return INTERPRETED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def candidates(kernel, variant, current):
    """Every configuration to try for a variant, the current one first."""
    choices = CANDIDATES.get(kernel, {}).get(variant, {})
    yield current
    for values in itertools.product(*choices.values()):
        candidate = {**current, **dict(zip(choices, values))}
        if candidate != current:
            yield candidate


def tune(device):
    """Time every candidate on the cases of `tuning_cases.py`; return the table of what was fastest."""
    from triton.testing import do_bench

    from . import triton_backend, tuning_cases

    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("the tuner times kernels and cannot run while a CUDA graph is captured")
    entries = table(gpu_name(device))
    best = {}
    for kernel, variant, op, make in tuning_cases.timed():
        arguments, run = make(device), triton_backend.call(op)
        call = functools.partial(run, *arguments)
        current, times = entries[kernel][variant], []
        for candidate in candidates(kernel, variant, current):
            entries[kernel][variant] = candidate
            config.cache_clear()
            try:
                times.append((do_bench(call, return_mode="median"), candidate))
            except Exception as error:  # a tile that does not fit this GPU; Triton has no one class for that
                print(f"{kernel} {variant} {candidate}: {str(error).splitlines()[0]}")
        time, entries[kernel][variant] = min(times, key=lambda pair: pair[0])
        config.cache_clear()
        print(f"{kernel} {variant}: {times[0][0] * 1000:.1f} -> {time * 1000:.1f} us, {entries[kernel][variant]}")
        best.setdefault(kernel, {})[variant] = entries[kernel][variant]
    return best


def main():
    if not torch.cuda.is_available():
        raise SystemExit("the tuner times kernels on a GPU, and torch sees none")
    device = torch.device("cuda", torch.cuda.current_device())
    path = FOLDER / f"{gpu_name(device)}.json"
    path.write_text(json.dumps(tune(device), indent=4) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
