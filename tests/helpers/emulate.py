"""The CUDA kernels on the CPU: every csrc/cuda/*.cu built by g++ against csrc/emulate, and called through ctypes."""

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

CSRC = Path(__file__).parents[2] / "csrc"
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}
NUMBERS = {"int": ctypes.c_int, "bool": ctypes.c_bool, "float": ctypes.c_float, "std::int64_t": ctypes.c_int64}
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


@functools.cache
def arguments_of():
    """{launcher: the ctypes structure that it takes}, as the headers of csrc/cuda declare them."""
    text = re.sub(r"//.*", "", "\n".join(path.read_text() for path in sorted(CSRC.glob("cuda/*.h"))))
    declared = {name: rest for name, *rest in re.findall(r"struct (\w+)(?: : (\w+))? \{([^}]*)\};", text)}

    @functools.cache
    def structure(name):
        base, body = declared[name]
        fields = []
        for line in filter(None, map(str.strip, body.split(";"))):
            kind, names = re.fullmatch(r"(?:const )?([\w: ]+?\*?) ((?:\w+, )*\w+)", line).groups()
            fields += [(field, ctypes.c_void_p if kind.endswith("*") else NUMBERS[kind]) for field in names.split(", ")]
        return type(name, (structure(base) if base else ctypes.Structure,), {"_fields_": fields})

    launchers = re.findall(r"cudaError_t corrigenda_(\w+)\(const (\w+)& arguments", text)
    return {launcher: structure(name) for launcher, name in launchers}


def launch(kernels, name, **given):
    """Run `corrigenda_<name>` on the fields of its structure: tensors (None for null) and numbers.

    Codes of formats follow from the tensors, and scratch is made here, of a byte that no kernel may rely on.
    """
    arguments = arguments_of()[name]()
    fields = {field for part in type(arguments).__mro__ for field, _ in getattr(part, "_fields_", ())}
    own = {field for field in fields if field == "scratch" or field.endswith("_dtype")}
    assert fields - own == given.keys(), f"{name} takes {sorted(fields - own)}"
    for field, value in given.items():
        setattr(arguments, field, value.data_ptr() if isinstance(value, torch.Tensor) else value)
        if f"{field}_dtype" in own and value is not None:
            setattr(arguments, f"{field}_dtype", DTYPES[value.dtype])
    if "scratch" in own:
        size_of = getattr(kernels, f"corrigenda_{name}_scratch_bytes")
        size_of.restype = ctypes.c_size_t
        scratch = torch.full((max(size_of(ctypes.byref(arguments)), 1),), 0xA5, dtype=torch.uint8)
        arguments.scratch = scratch.data_ptr()
    status = getattr(kernels, f"corrigenda_{name}")(ctypes.byref(arguments), ctypes.c_void_p(None))
    assert status == 0, f"{name} was refused with CUDA error {status}"
