"""The layout: folders map into `corrigenda`, nothing shadows Hugging Face's `kernels`; what a build makes of csrc/."""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tree import ROOT, copy_tree


def run(*args, cwd, **env):
    """Run this Python with `args`; variables given as None are unset."""
    merged = {**os.environ, "PYTHONPATH": None, "CORRIGENDA_BUILD": None, **env}
    merged = {name: str(value) for name, value in merged.items() if value is not None}
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=merged, capture_output=True, text=True)


def output(*args, cwd, **env):
    done = run(*args, cwd=cwd, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def shipped():
    """What a wheel must hold, read from the tree, so that a forgotten subpackage or data file fails."""
    files = [file for folder in ("kernels", "editing", "serving") for file in (ROOT / folder).rglob("*.py")]
    files += [ROOT / folder / "py.typed" for folder in ("kernels", "editing", "serving")]
    files += [*(ROOT / "kernels/configs").glob("*"), *(ROOT / "editing/data").glob("*"), ROOT / "serving/edits.html"]
    return {f"corrigenda/{file.relative_to(ROOT).as_posix()}" for file in files if file.is_file()}


def build_wheel(folder, tree, **env):
    command = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    return run(*command, "--wheel-dir", folder / "dist", tree, cwd=folder, **env)


def built_wheel(folder, **env):
    done = build_wheel(folder, copy_tree(folder), **env)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (folder / "dist").glob("*.whl")
    return built


def contents(wheel):
    """(the package's files, all others) in a wheel."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    ours = {name for name in names if name.startswith("corrigenda/")}
    return ours, names - ours


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A pure wheel, built where importing torch raises: a build must not need the torch it will run with."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "poison").mkdir()
    (folder / "poison/torch.py").write_text("raise RuntimeError('the build imported torch')\n")
    return built_wheel(folder, PYTHONPATH=folder / "poison", CORRIGENDA_BUILD="none")


def test_no_folder_shadows_a_package():
    assert not (ROOT / "kernels/__init__.py").exists()
    assert not (ROOT / "corrigenda").exists()
    assert (ROOT / "editing/__init__.py").exists()


def test_editable_install_is_this_tree():
    # Several, because the egg-info that a build leaves at the root is found too.
    found = importlib.metadata.distributions(name="corrigenda")
    urls = [json.loads(each.read_text("direct_url.json") or "{}") for each in found]
    if not any(url.get("dir_info", {}).get("editable") for url in urls):
        pytest.skip("corrigenda is not installed in editable mode")
    for module, file in (("kernels.ops", "kernels/ops.py"), ("editing", "editing/__init__.py")):
        assert Path(importlib.util.find_spec(f"corrigenda.{module}").origin).resolve() == ROOT / file


def test_root_folder_yields_to_a_real_kernels_package(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels/__init__.py").write_text("")
    # `-c` puts the working directory, the root, first on the path; the real package comes last.
    code = "import sys; sys.path.append(sys.argv[1]); import kernels; print(kernels.__file__)"
    assert output("-c", code, tmp_path, cwd=ROOT) == str(tmp_path / "kernels/__init__.py")


@pytest.mark.slow
def test_transformers_does_not_take_the_root_folder_for_hugging_face_kernels():
    installed = "kernels" in importlib.metadata.packages_distributions()
    code = "from transformers.utils.import_utils import is_kernels_available as f; print(f())"
    available = output("-c", code, cwd=ROOT)
    assert installed or available == "False"


@pytest.mark.slow
def test_wheel_holds_exactly_our_packages(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")
    ours, others = contents(wheel)
    assert ours == shipped()
    assert all(name.split("/")[0].endswith(".dist-info") for name in others)


@pytest.mark.slow
def test_wheel_works_away_from_the_tree(wheel, tmp_path):
    target = tmp_path / "site"
    command = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    output(*command, "--target", target, wheel, cwd=tmp_path)
    code = "import corrigenda.editing as e, corrigenda.kernels.ops as o; print(e.__file__); print(o.__file__)"
    files = output("-c", code, cwd=tmp_path, PYTHONPATH=target).splitlines()
    assert files == [str(target / "corrigenda" / name) for name in ("editing/__init__.py", "kernels/ops.py")]


BROKEN = "csrc/cpu/associative_read.cpp"  # the first to be compiled, so that the tests do not wait for the others


@pytest.mark.slow
def test_auto_builds_without_what_does_not_compile_and_says_so(tmp_path):
    tree = copy_tree(tmp_path)
    (tree / BROKEN).write_text("this is no C++\n")
    done = build_wheel(tmp_path, tree)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (tmp_path / "dist").glob("*.whl")
    assert not any(name.endswith(".so") for name in contents(built)[0])
    note = zipfile.ZipFile(built).read("corrigenda/kernels/build.txt").decode()
    assert note == "cpu: its compilation failed\n"


@pytest.mark.slow
def test_strict_build_fails_with_the_compilers_words(tmp_path):
    tree = copy_tree(tmp_path)
    (tree / BROKEN).write_text("this is no C++\n")
    done = build_wheel(tmp_path, tree, CORRIGENDA_BUILD="cpu")
    assert done.returncode != 0
    assert "CORRIGENDA_BUILD=cpu cannot be met: this command failed:" in done.stderr
    assert "associative_read.cpp:1" in done.stderr


@pytest.mark.slow
def test_a_missing_compiler_is_named(tmp_path):
    wheel = built_wheel(tmp_path, CXX=tmp_path / "no-such-compiler")
    note = zipfile.ZipFile(wheel).read("corrigenda/kernels/build.txt").decode()
    assert note == f"cpu: {tmp_path / 'no-such-compiler'} cannot be run (No such file or directory)\n"


OLD = """for word in "$@"; do
  case $word in -march=*) echo "bad value $word" >&2; exit 1;; esac
done
exec g++ "$@"
"""


@pytest.mark.slow
def test_what_a_compiler_does_not_know_is_left_out_and_named(tmp_path):
    """A compiler of two words, as many jobs as cores, and no instruction set but the baseline's."""
    (tmp_path / "old.sh").write_text(OLD)
    compiler = {"CXX": f"sh '{tmp_path / 'old.sh'}'", "CXXFLAGS": "-O0", "MAX_JOBS": "0"}
    built = built_wheel(tmp_path, CORRIGENDA_BUILD="cpu", **compiler)
    why, sets = "the compiler does not know these instructions", ("avx2", "avx512", "amx")
    note = zipfile.ZipFile(built).read("corrigenda/kernels/build.txt").decode()
    assert note == "".join(f"{name}: {why}\n" for name in sets)
    zipfile.ZipFile(built).extractall(tmp_path / "site")
    code = "from corrigenda.kernels import native; import torch; print(native.absent('cpu'), native.left_out())"
    code += "; print(torch.ops.corrigenda_native.cpu_instructions())"
    found, running = output("-c", code, cwd=tmp_path, PYTHONPATH=tmp_path / "site").splitlines()
    assert found == f"{[(name, why) for name in sets]}" and running == "baseline"


def test_a_number_of_jobs_that_is_none_fails_in_one_sentence(tmp_path):
    done = build_wheel(tmp_path, copy_tree(tmp_path), MAX_JOBS="many")
    assert done.returncode != 0
    assert "MAX_JOBS=many must be a whole number: how many compilers may run side by side." in done.stderr


def test_unknown_build_mode_fails_in_one_sentence():
    done = run("setup.py", "--version", cwd=ROOT, CORRIGENDA_BUILD="bogus")
    assert done.returncode != 0
    assert done.stderr.strip() == "CORRIGENDA_BUILD=bogus is unknown: use one of auto, none, cpu, cuda."
