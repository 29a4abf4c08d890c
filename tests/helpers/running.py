"""`transformers serve` with edits, running in this process."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@contextlib.contextmanager
def transformers_server(model: Path, settings: dict[str, Any]) -> Iterator[Any]:
    """Within: a server on this machine alone, and an `httpx.Client` of it."""
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("uvicorn")
    pytest.importorskip("openai")
    from corrigenda.serving.launcher import launch

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--device", "cpu", "--cb-num-blocks", "128", "--cb-max-batch-tokens", "64"]
    running = launch("transformers", str(model), settings, [*options, "--non-blocking"])
    with httpx.Client(base_url=f"http://localhost:{port}", timeout=60) as http:
        for _ in range(600):
            try:
                http.get("/health")
                break
            except httpx.TransportError:
                time.sleep(0.05)
        yield http
    running.kill_server()
