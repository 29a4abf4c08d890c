"""The C++ and CUDA kernels: two shared libraries that `setup.py` builds beside this file, loaded once, at import.

They register their ops in the namespace `corrigenda_native`, under the names and with the arguments of the public
ops. A library that is missing or does not load leaves its reason here; the import never fails.
"""

from pathlib import Path

import torch

LIBRARIES = {"cpu": "_C.so", "cuda": "_C_cuda.so"}


def _load(device):
    """Load the library of a device type; return "" or the one sentence that says why it is not live."""
    path = Path(__file__).with_name(LIBRARIES[device])
    if device == "cuda" and torch.version.cuda is None:
        return "this torch is built without CUDA; install a CUDA build of torch"
    if not path.exists():
        reason = _build_note(path.with_name("build.txt"), device)
        return f"{path.name} is not built{reason}; `CORRIGENDA_BUILD={device} pip install .` builds it or says why not"
    try:
        torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:
        cause = str(error).splitlines()[0]
        return f"{path.name} does not load in torch {torch.__version__} ({cause}); install the project again"
    return ""


def _build_note(path, device):
    """What the build left out for `device`, as setup.py recorded it: " (no nvcc was found)", or nothing."""
    if path.exists():
        for line in path.read_text().splitlines():
            name, _, cause = line.partition(": ")
            if name == device:
                return f" ({cause})"
    return ""


def left_out():
    """What a build that went through could not make: (an instruction set or a GPU's architecture, why) of each."""
    path = Path(__file__).with_name("build.txt")
    lines = path.read_text().splitlines() if path.exists() else []
    return [(name, why) for name, _, why in (line.partition(": ") for line in lines) if name not in LIBRARIES]


_absent = {"cpu": _load("cpu")}
# The CUDA library implements ops that the CPU library defines.
_absent["cuda"] = _absent["cpu"] or _load("cuda")


def absent(device):
    """Why there are no native kernels for tensors on `device` ("cpu", "cuda", ...), or "" if there are."""
    return _absent.get(device, f"there are no native kernels for {device} tensors")


def lacks(op):
    """Why the libraries have no such op, or "": one that was built before the op came lacks it."""
    if _absent["cpu"] or hasattr(torch.ops.corrigenda_native, op):
        return ""
    return f"the libraries were built before {op} came; install the project again"


def label_losses_pays(hidden, weight, labels):
    """Whether the native label_losses is faster than torch, on a CPU where it is built.

    Processors with AVX-512 may multiply bfloat16 at more than twice the rate of float32, which torch then does: with
    SmolLM2's head 16 labels take 16 ms here and 21 ms there, 17 labels 23 and 22, 128 labels 83 and 42.
    """
    halves = hidden.dtype == weight.dtype == torch.bfloat16
    wide = torch.ops.corrigenda_native.cpu_instructions() in ("avx512", "amx")
    return not (halves and wide and len(labels) > 16)


def call(op):
    """The native form of `op`, looked up when it is first called."""

    def run(*arguments):
        return getattr(torch.ops.corrigenda_native, op).default(*arguments)

    return run
