"""Compile every Triton kernel, in every configuration that can be chosen, for GPUs that need not be there.

The ops' own launchers run on tensors without storage, with each table of `kernels/configs`, while every launch is
recorded instead of made; so what is compiled is what would be launched. ptxas reports registers and stack, and the
machine code is searched for spills: a kernel with a stack or with local loads or stores fails the gate.

    python tools/compile_triton.py [--targets 80 90 100] [--json FILE] [--only KERNEL] [--once]
"""

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

if os.environ.pop("TRITON_INTERPRET", None):
    os.execv(sys.executable, [sys.executable, *sys.argv])  # Triton reads it when it is imported
os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp(prefix="compile_triton_")

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, mangle_type

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
OPTIONS = ("num_warps", "num_stages")


class Launch:
    """One kernel with the types of its arguments and its constants: what Triton would compile for a call."""

    def __init__(self, function, arguments, keywords):
        self.function = function
        self.options = {name: keywords.pop(name) for name in OPTIONS if name in keywords}
        self.signature, self.constants, self.aligned = {}, {}, []
        values = {**dict(zip(function.arg_names, arguments)), **keywords}
        for place, name in enumerate(function.arg_names):
            parameter = function.params[place]
            value = values.get(name, parameter.default)
            # As Triton specialises: None and 1 are compiled in, and multiples of 16 are known as such.
            if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
                self.signature[name], self.constants[name] = "constexpr", value
                continue
            self.signature[name] = mangle_type(value)
            if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
                self.aligned.append(place)

    @property
    def name(self):
        return f"{self.function.__module__.rpartition('.')[2]}.{self.function.__name__}"

    @property
    def configuration(self):
        types = [self.signature[name][1:] for name in self.signature if self.signature[name].startswith("*")]
        constants = {name: value for name, value in self.constants.items() if name.isupper()}
        return " ".join(
            [*dict.fromkeys(types), *(f"{name}={value}" for name, value in {**constants, **self.options}.items())]
        )

    @property
    def key(self):
        return repr((self.name, self.signature, self.constants, self.aligned, self.options))

    def compile(self, capability):
        source = ASTSource(
            fn=self.function,
            signature=self.signature,
            constexprs=self.constants,
            attrs={(place,): [["tt.divisibility", 16]] for place in self.aligned},
        )
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=self.options)


def recorded_launches():
    """Every distinct launch that the ops make, over all tables of configurations."""
    from corrigenda.kernels import triton_backend, tuning, tuning_cases

    launches = {}

    def record(function, *arguments, grid, warmup, **keywords):
        launch = Launch(function, arguments, dict(keywords))
        launches.setdefault(launch.key, launch)

    JITFunction.run = record
    tuning.multiprocessors = lambda device: 132
    for path in sorted(tuning.FOLDER.glob("*.json")):
        tuning.config.cache_clear()
        tuning.gpu_name = lambda device, name=path.stem: name
        for op, make in tuning_cases.compiled():
            triton_backend.call(op)(*make(torch.device("meta")))
    return list(launches.values())


def chosen_variants(launches):
    """Whether every entry of the default table was launched; what is not could not be vouched for."""
    from corrigenda.kernels import tuning

    seen = [{**launch.constants, **launch.options} for launch in launches]
    for kernel, variants in tuning.table("default").items():
        for variant, entry in variants.items():
            if not any(entry.items() <= constants.items() for constants in seen):
                yield f"{kernel} {variant}"


def misnamed_parameters(launches):
    """Every parameter of a kernel whose name says that it is a pointer and which is none, or the reverse."""
    for launch in launches:
        for name, kind in launch.signature.items():
            if kind != "constexpr" and kind.startswith("*") != name.endswith("_ptr"):
                yield f"{launch.name} {name}"


def inspect(compiled):
    """(registers, stack bytes, shared bytes, local loads and stores) of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()

        def output(tool, option):
            return subprocess.run([TOOLS / tool, option, file.name], capture_output=True, text=True, check=True).stdout

        usage = output("cuobjdump", "--dump-resource-usage")
        code = output("nvdisasm", "-c")
    registers, stack = (int(re.search(rf"{field}:(\d+)", usage)[1]) for field in ("REG", "STACK"))
    return registers, stack, compiled.metadata.shared, len(re.findall(r"\b(?:STL|LDL)\b", code))


def compiled_row(launch, target):
    """What the table says of one launch on one target."""
    row = {"kernel": launch.name, "configuration": launch.configuration, "target": target}
    start = time.perf_counter()
    try:
        registers, stack, shared, spills = inspect(launch.compile(target))
    except Exception as error:  # whatever a compiler raises is a failure of this row, not of the others
        return {**row, "error": str(error) or repr(error)}
    seconds = round(time.perf_counter() - start, 2)
    return {**row, "registers": registers, "stack": stack, "spills": spills, "shared": shared, "seconds": seconds}


_work = None  # of `in_processes`: a child that is forked finds it here, for launches cannot be sent to it


def in_processes(work, count):
    """`work(0)` to `work(count - 1)`, in this order, by as many processes as there are cores."""
    global _work
    _work = work
    # Not multiprocessing's own pool, which waits for ever for a compiler that aborted its process.
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("fork")) as pool:
        yield from pool.map(_one, range(count))


def _one(number):
    return _work(number)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", type=int, nargs="+", default=[80, 90, 100], help="compute capabilities, times 10")
    parser.add_argument("--json", type=Path, help="write the table there, too")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--once", action="store_true", help="each kernel in one configuration only")
    options = parser.parse_args()
    run = JITFunction.run
    launches = recorded_launches()
    JITFunction.run = run
    missing = list(chosen_variants(launches))
    for variant in missing:
        print(f"no case of tuning_cases.compiled() launches {variant}")
    misnamed = sorted(set(misnamed_parameters(launches)))
    for parameter in misnamed:
        print(f"{parameter}: a pointer's name ends in _ptr, and no other's")
    if options.once:
        launches = list({launch.name: launch for launch in reversed(launches)}.values())
    rows, failures = [], len(missing) + len(misnamed)
    print(
        f"triton {triton.__version__}\n"
        f"{'kernel':44} {'sm':>4} {'regs':>4} {'stack':>5} {'spills':>6} {'shared':>7} {'s':>5}"
    )
    jobs = [(launch, target) for launch in launches if options.only in launch.name for target in options.targets]
    for row in in_processes(lambda number: compiled_row(*jobs[number]), len(jobs)):
        rows.append(row)
        if "error" in row:
            failures += 1
            print(f"{row['kernel']:44} {row['target']:4} FAILED: {row['error'].strip().splitlines()[-1]}")
            print(f"    {row['configuration']}")
            continue
        failed = row["stack"] > 0 or row["spills"] > 0
        failures += failed
        print(
            f"{row['kernel']:44} {row['target']:4} {row['registers']:4} {row['stack']:5} {row['spills']:6}"
            f" {row['shared']:7} {row['seconds']:5.1f}  {row['configuration']}{'  SPILLS' if failed else ''}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps({"triton": triton.__version__, "kernels": rows}, indent=1) + "\n")
    print(f"{len(rows)} kernels, {failures} failures")
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
