"""pyproject.toml says what is packaged; this file builds the native kernels with it, where the machine can.

CORRIGENDA_BUILD=auto (the default) builds what it can and notes why the rest is left out, for `corrigenda doctor`;
none builds nothing; cpu and cuda fail with the compiler's words if theirs cannot be built. CXX (split as by a shell:
"ccache g++"), CXXFLAGS and MAX_JOBS (0: one a core) are heeded. Instruction sets and GPUs that a compiler does not know
are left out, and named by doctor.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# An isolated build fetches what pyproject.toml asks for; one without isolation takes what is there.
if int(setuptools.__version__.split(".")[0]) < 77:
    raise SystemExit(
        f"Corrigenda is built with setuptools 77 or newer, and this environment has {setuptools.__version__}: "
        "pip install 'setuptools>=77', or leave out --no-build-isolation."
    )
from setuptools.command.bdist_wheel import bdist_wheel

MODES = ("auto", "none", "cpu", "cuda")
ROOT = Path(__file__).resolve().parent
SOURCES = ROOT / "csrc"

# One object of each CPU kernel per instruction set; the library picks by what the processor has. csrc/cpu/amx has what
# is made for AMX alone: that set takes the rest from avx512, which saves compiling all of it again. A set has a list of
# flags for each way to name it, of which the first is taken that the compiler knows: those of processors are older.
INSTRUCTIONS = {}
if platform.machine() in ("x86_64", "AMD64"):
    wide = ["-mavx512vpopcntdq", "-mprefer-vector-width=512"]
    INSTRUCTIONS["avx2"] = [["-march=x86-64-v3"], ["-march=haswell"]]
    INSTRUCTIONS["avx512"] = [["-march=x86-64-v4", *wide], ["-march=skylake-avx512", *wide]]
    if platform.system() == "Linux":  # which a process must ask for the registers
        tiles = ["-mavx512vbmi2", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"]
        INSTRUCTIONS["amx"] = [[*flags, *tiles] for flags in INSTRUCTIONS["avx512"]]

# Small programs that show whether compiler and assembler know a set: GCC 11, clang 12 and binutils 2.35 know AMX.
PROBES = {
    "avx2": "#include <immintrin.h>\n__m256i probe(__m256i a) { return _mm256_add_epi32(a, a); }\n",
    "avx512": "#include <immintrin.h>\n__m512i probe(__m512i a) { return _mm512_popcnt_epi32(a); }\n",
    "amx": 'void probe() { __asm__("tdpbf16ps %tmm2, %tmm1, %tmm0"); }\n',
}

CXX_FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-Wall", "-Werror=return-type"]
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020B000000000000"]  # torch 2.11, the oldest that is supported
# A register spilled to memory is an error: kernels are tuned not to.
NVCC_FLAGS = ["-O3", "-std=c++17", "-Xcompiler", "-fPIC", "-Xptxas", "-v,-warn-spills", "-Xptxas", "-Werror"]
CUDA_ARCHITECTURES = ("80", "90a", "100")


class Unavailable(Exception):
    """What is missing, as the end of a sentence, for a library to be built."""


def torch_folder():
    """The installed torch. It is read, not imported: an isolated build sees no site-packages, but headers do."""
    for scheme in ("purelib", "platlib"):
        folder = Path(sysconfig.get_path(scheme)) / "torch"
        if (folder / "include/torch/csrc/stable/library.h").exists():
            version = re.search(r"__version__ = '(\d+)\.(\d+)", (folder / "version.py").read_text())
            if version and tuple(map(int, version.groups())) < (2, 11):
                raise Unavailable("the torch in this environment is older than 2.11")
            return folder
    raise Unavailable("no torch was installed before the build")


def compiler():
    """The C++ compiler as a command, split as a shell would."""
    named = shlex.split(os.environ.get("CXX", ""))
    found = named or [path for path in (shutil.which("g++"), shutil.which("clang++")) if path][:1]
    if not found:
        raise Unavailable("no C++ compiler was found")
    return found


def compiles(command, source, text):
    """Whether a compiler takes the file `source`, which is written with this text."""
    source.write_text(text)
    try:
        run([[*command, "-c", source, "-o", source.with_suffix(".o")]])
    except (Unavailable, subprocess.CalledProcessError):
        return False
    return True


def known_instructions(cxx, folder, notes):
    """The flags of each instruction set that the compiler knows; the others are noted."""
    known = {"baseline": []}
    for name, ways in INSTRUCTIONS.items():
        # What AMX has of its own stands on avx512's kernels.
        usable = ways if name != "amx" or "avx512" in known else []
        flags = next((way for way in usable if compiles([*cxx, *way], folder / f"{name}.cpp", PROBES[name])), None)
        if flags is not None:
            known[name] = flags
        elif compiles(cxx, folder / "plain.cpp", "int probe;\n"):  # else it is no compiler, which is said below
            notes[name] = "the compiler does not know these instructions"
    return known


def known_architectures(nvcc, folder, notes):
    """The GPU architectures that nvcc knows; the others are noted."""
    known = []
    for name in CUDA_ARCHITECTURES:
        if compiles([nvcc, *generated(name)], folder / f"sm_{name}.cu", "__global__ void probe() {}\n"):
            known.append(name)
        else:
            notes[f"sm_{name}"] = f"this nvcc does not know compute_{name}"
    if not known:
        raise Unavailable(f"this nvcc compiles for none of sm_{', sm_'.join(CUDA_ARCHITECTURES)}")
    return known


def generated(architecture):
    return [f"-gencode=arch=compute_{architecture},code=sm_{architecture}"]


def jobs():
    """How many compilers run side by side."""
    asked = os.environ.get("MAX_JOBS", "").strip() or "0"
    if not asked.isdigit():
        raise SystemExit(f"MAX_JOBS={asked} must be a whole number: how many compilers may run side by side.")
    return int(asked) or os.cpu_count() or 1


def cuda_folder():
    nvcc = shutil.which("nvcc")
    candidates = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parents[1], "/usr/local/cuda"]
    for candidate in candidates:
        # An nvcc on the PATH may be a script that calls the toolkit's own from elsewhere.
        if candidate and all((Path(candidate) / part).exists() for part in ("bin/nvcc", "include/cuda_runtime_api.h")):
            return Path(candidate)
    raise Unavailable("no nvcc was found")


def run(commands):
    """Run commands side by side; the first that fails raises with what it printed, and no more are started."""

    def one(command):
        try:
            done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        except OSError as error:
            raise Unavailable(f"{command[0]} cannot be run ({error.strerror})") from None
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)

    with ThreadPoolExecutor(jobs()) as pool:
        running = [pool.submit(one, command) for command in commands]
        try:
            for each in running:
                each.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class Build(build_ext):
    """Compiles and links by hand: no torch header reaches a kernel, so a whole build takes seconds."""

    def get_ext_filename(self, name):
        return name.replace(".", "/") + ".so"  # no Python symbol in it: one file serves every Python

    def run(self):
        self.notes = {}
        super().run()
        package = Path(self.build_lib) / "corrigenda/kernels"
        package.mkdir(parents=True, exist_ok=True)
        for folder in (package, *([ROOT / "kernels"] if self.inplace else [])):
            (folder / "build.txt").write_text("".join(f"{name}: {note}\n" for name, note in self.notes.items()))

    def copy_extensions_to_source(self):
        """For editable installs: what was built, and no complaint about what was left out."""
        wanted = self.extensions
        self.extensions = [e for e in wanted if (Path(self.build_lib) / self.get_ext_filename(e.name)).exists()]
        super().copy_extensions_to_source()
        self.extensions = wanted

    def build_extension(self, extension):
        device = "cuda" if extension.name.endswith("_cuda") else "cpu"
        target = Path(self.get_ext_fullpath(extension.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.build_library(device, target)
        except (Unavailable, subprocess.CalledProcessError) as error:
            compiled = isinstance(error, subprocess.CalledProcessError)
            if mode == device:
                raise SystemExit(f"CORRIGENDA_BUILD={mode} cannot be met: {explain(error)}") from None
            parts = INSTRUCTIONS if device == "cpu" else [f"sm_{name}" for name in CUDA_ARCHITECTURES]
            self.notes = {name: note for name, note in self.notes.items() if name not in parts}
            self.notes[device] = "its compilation failed" if compiled else str(error)
            self.announce(f"left out the {device} kernels: {explain(error)}", level=3)

    def build_library(self, device, target):
        torch = torch_folder()
        cxx = compiler()
        objects = Path(self.build_temp) / device
        objects.mkdir(parents=True, exist_ok=True)
        compile_cxx = [*cxx, *CXX_FLAGS, *shlex.split(os.environ.get("CXXFLAGS", ""))]
        bind = [*compile_cxx, *STABLE_ABI, f"-I{torch / 'include'}"]
        commands, link = [], []
        if device == "cpu":
            known = known_instructions(cxx, objects, self.notes)
            for source in sorted((SOURCES / "cpu").glob("*.cpp")):
                if source.stem == "select":
                    defines = [f"-DCORRIGENDA_{name.upper()}" for name in known if name != "baseline"]
                    commands.append([*compile_cxx, *defines, "-c", source, "-o", objects / "select.o"])
                    continue
                for name, flags in known.items():
                    if name == "amx":
                        continue
                    defines = [f"-DCORRIGENDA_INSTRUCTIONS={name}"]
                    output = objects / f"{source.stem}.{name}.o"
                    commands.append([*compile_cxx, *flags, *defines, "-c", source, "-o", output])
            for source in sorted((SOURCES / "cpu/amx").glob("*.cpp")) if "amx" in known else []:
                defines, output = ["-DCORRIGENDA_INSTRUCTIONS=amx"], objects / f"{source.stem}.amx.o"
                commands.append([*compile_cxx, *known["amx"], *defines, "-c", source, "-o", output])
            bindings = [SOURCES / "torch/library.cpp", *sorted((SOURCES / "torch").glob("cpu_*.cpp"))]
        else:
            cuda = cuda_folder()
            known = known_architectures(cuda / "bin/nvcc", objects, self.notes)
            generate = [flag for architecture in known for flag in generated(architecture)]
            if "80" in known:  # for GPUs to come, whose driver compiles it
                generate.append("-gencode=arch=compute_80,code=compute_80")
            for source in sorted((SOURCES / "cuda").glob("*.cu")):
                output = objects / f"{source.stem}.cu.o"
                commands.append([cuda / "bin/nvcc", *NVCC_FLAGS, *generate, "-c", source, "-o", output])
            bindings = sorted((SOURCES / "torch").glob("cuda_*.cpp"))
            bind.append(f"-I{cuda / 'include'}")
            link = [f"-L{cuda / 'lib64'}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        for source in bindings:
            commands.append([*bind, "-c", source, "-o", objects / f"{source.stem}.o"])
        run(commands)
        # Symbols of libtorch are not global, so the library names it; libtorch names its CUDA part where it has one.
        torch_libraries = [f"-L{torch / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-Wl,--as-needed"]
        outputs = [Path(command[-1]) for command in commands]
        run([[*compile_cxx, "-shared", "-Wl,-Bsymbolic", *outputs, *torch_libraries, *link, "-o", target]])


def explain(error):
    if isinstance(error, Unavailable):
        return f"{error}."
    command = " ".join(str(part) for part in error.cmd)
    return f"this command failed:\n{command}\n{error.stdout}{error.stderr}"


class Wheel(bdist_wheel):
    """The libraries hold no Python symbol, so the wheel is for every Python 3 of this platform."""

    def get_tag(self):
        python, abi, system = super().get_tag()
        return ("py3", "none", system) if self.distribution.has_ext_modules() else (python, abi, system)


def extensions():
    if mode == "none":
        return []
    found = [Extension("corrigenda.kernels._C", [])]
    if mode == "cuda" or (mode == "auto" and torch_has_cuda()):
        found.append(Extension("corrigenda.kernels._C_cuda", []))
    return found


def torch_has_cuda():
    """Whether the installed torch can load CUDA kernels at all; without, "auto" spares the time to build them."""
    try:
        text = (torch_folder() / "version.py").read_text()
    except Unavailable:
        return False
    return re.search(r"^cuda.*= '", text, re.MULTILINE) is not None


mode = os.environ.get("CORRIGENDA_BUILD", "auto")
if mode not in MODES:
    raise SystemExit(f"CORRIGENDA_BUILD={mode} is unknown: use one of {', '.join(MODES)}.")

setup(ext_modules=extensions(), cmdclass={"build_ext": Build, "bdist_wheel": Wheel})
