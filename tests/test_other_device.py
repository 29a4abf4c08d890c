"""Editing and serving on a device that is not the CPU, without hardware: `other_device/` has it, and the checks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import other_device
import pytest

CHECKS = Path(other_device.__file__).with_name("checks.py")


@pytest.mark.slow
@pytest.mark.skipif(other_device.compiler() is None, reason="g++ is not installed")
def test_nothing_meets_what_cuda_would_refuse():
    """In a process of its own: torch takes the device for its accelerator, and cannot forget it."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", CHECKS]
    run = subprocess.run(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr
