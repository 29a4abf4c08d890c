"""Launch configurations as data: tile sizes, warps and stages per kernel and variant, one JSON file per GPU.

`configs/default.json` holds an entry for every variant; `configs/<GPU name>.json` replaces those that were measured
on that GPU. A launcher picks its variant by shapes alone and looks the entry up here: nothing is timed on the call
path, so nothing synchronises and a CUDA graph can be captured. `python -m corrigenda.kernels.tuner` measures.
"""

import functools
import json
from pathlib import Path

import torch

FOLDER = Path(__file__).with_name("configs")

# On a CPU kernels are interpreted, program by program: few are fast, but some, so that splits are tested.
INTERPRETED_MULTIPROCESSORS = 8


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
