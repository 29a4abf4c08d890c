"""A vLLM server of its own process, and what a client asks of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from corrigenda.serving.vllm import launcher


class Server:
    """vLLM's OpenAI server over a model, with edits or (settings None) without; `with Server(...) as server:`."""

    def __init__(self, model, settings, log: Path, *options: str) -> None:
        self.port = _free_port()
        options = [*options, "--host", "127.0.0.1", "--port", str(self.port), "--served-model-name", "m"]
        if settings is None:
            arguments, environment = launcher.command(str(model), {"edits": "none"}, options)
            place = arguments.index("--additional-config")
            del arguments[place : place + 2]
            environment["VLLM_PLUGINS"] = ""
        else:
            arguments, environment = launcher.command(str(model), settings, options)
        self.log = log
        self._arguments, self._environment = arguments, environment

    def __enter__(self) -> Server:
        with open(self.log, "w") as log:
            self._process = subprocess.Popen(
                self._arguments, env=self._environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait(self, seconds: float = 400) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise RuntimeError(f"The server ended with {self._process.returncode}; see {self.log}.")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return
            time.sleep(1)
        raise RuntimeError(f"The server did not start in {seconds:.0f} s; see {self.log}.")

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(self, method: str, path: str, body=None, headers=()):
        """Status, headers and the answer's JSON (or text, where it is none)."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, dict(headers), method=method)
        request.add_header("content-type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                status, headers, text = answer.status, answer.headers, answer.read().decode()
        except urllib.error.HTTPError as error:
            status, headers, text = error.code, error.headers, error.read().decode()
        try:
            return status, headers, json.loads(text)
        except ValueError:
            return status, headers, text

    def complete(self, prompt: list[int], tokens: int, **options):
        """Greedy completion of token ids: status, token ids, the edit (None: none) and the version that decided it."""
        body = {"model": "m", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "return_token_ids": True}
        status, headers, answer = self.call("POST", "/v1/completions", {**body, **options})
        if status != 200:
            return status, answer, None, None
        edit = headers["x-corrigenda-edit"]
        version = headers["x-corrigenda-version"]
        tokens = answer["choices"][0]["token_ids"]
        return status, tokens, None if edit in (None, "-") else edit, None if version is None else int(version)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
