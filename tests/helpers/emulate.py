"""The CUDA kernels on the CPU: every csrc/cuda/*.cu built by g++ against csrc/emulate, and called through ctypes."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

CSRC = Path(__file__).parents[2] / "csrc"
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}
SEEDS = (0, 1, 2, 3)  # 0 is the plain order, one thread after the other; the others shuffle warps and lanes
FLAGS = ("-std=c++17", "-fPIC", "-pthread", "-DCORRIGENDA_EMULATE", "-Wall", "-Wno-unknown-pragmas")


def compiler():
    return shutil.which("g++")


def build(sources, *flags, name="cuda.so"):
    """Compile `sources` into one file named by what it is made of, in the temporary folder; return its path.

    One object a source, two at a time. Optimised for what the tests take, not for speed alone: -O1.
    """
    sources = [*sources, CSRC / "emulate/fibers.cpp"]
    headers = sorted([*CSRC.glob("cuda/*.*h"), *CSRC.glob("emulate/*.h")])
    digest = hashlib.sha256(repr((flags, FLAGS)).encode())
    for path in (*sources, *headers):
        digest.update(path.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"corrigenda-emulate-{os.getuid()}" / digest.hexdigest()[:16]
    target = folder / name
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        objects = [Path(work) / f"{path.stem}.o" for path in sources]
        options = ("-O1", f"-I{CSRC / 'cuda'}", *FLAGS, *flags)
        for first in range(0, len(sources), 2):
            running = [
                subprocess.Popen(
                    [compiler(), "-x", "c++", "-c", *options, str(source), "-o", str(made)],
                    stderr=subprocess.PIPE,
                    text=True,
                )
                for source, made in zip(sources[first : first + 2], objects[first : first + 2])
            ]
            errors = [process.communicate()[1] for process in running]
            if any(process.returncode for process in running):
                raise RuntimeError("\n".join(errors))
        linked = Path(work) / name
        shape = () if target.suffix == "" else ("-shared",)
        subprocess.run([compiler(), *FLAGS, *flags, *shape, *map(str, objects), "-o", str(linked)], check=True)
        linked.replace(target)
    return target


def library(*flags):
    """All kernels of the project as one shared library."""
    return ctypes.CDLL(str(build(sorted(CSRC.glob("cuda/*.cu")), *flags)))


def _argument(value):
    if value is None or isinstance(value, torch.Tensor):
        return ctypes.c_void_p(None if value is None else value.data_ptr())
    if isinstance(value, torch.dtype):
        return ctypes.c_int(DTYPES[value])
    if isinstance(value, float):
        return ctypes.c_float(value)
    return ctypes.c_int64(value)


def call(kernels, name, *arguments):
    """Launch `corrigenda_<name>`: tensors go as pointers, dtypes as codes, ints as int64, floats as float32.

    The stream, which every launcher takes last, is added.
    """
    status = getattr(kernels, f"corrigenda_{name}")(*map(_argument, arguments), ctypes.c_void_p(None))
    assert status == 0, f"{name} was refused with CUDA error {status}"


def scratch(kernels, name, *sizes):
    """The scratch memory that `corrigenda_<name>` asks for, filled with a byte that no kernel may rely on."""
    size_of = getattr(kernels, f"corrigenda_{name}_scratch_bytes")
    size_of.restype = ctypes.c_size_t
    return torch.full((max(size_of(*map(_argument, sizes)), 1),), 0xA5, dtype=torch.uint8)
