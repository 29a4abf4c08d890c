"""pyproject.toml says what is packaged; this file says only whether native code is built with it."""

import os

from setuptools import setup

MODES = ("auto", "none", "cpu", "cuda")

mode = os.environ.get("CORRIGENDA_BUILD", "auto")
if mode not in MODES:
    raise SystemExit(f"CORRIGENDA_BUILD={mode} is unknown: use one of {', '.join(MODES)}.")
if mode in ("cpu", "cuda"):
    # Strict: no wheel rather than one without what was asked for. csrc/ holds nothing to build yet.
    raise SystemExit(f"CORRIGENDA_BUILD={mode} cannot be met: there is no C++ code yet; use auto or none.")

setup()
