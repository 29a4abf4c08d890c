"""The project's own tree, and copies of it to build from."""

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def copy_tree(folder):
    """A copy to build from: an in-tree build would leave `build/`, whose stale files enter later wheels."""
    tree = folder / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("csrc", "kernels", "editing", "serving"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.so", "build.txt"))
    return tree
