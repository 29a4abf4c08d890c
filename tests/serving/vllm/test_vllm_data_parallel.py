"""vLLM with data parallelism: every engine has the edits' rows, and all turn to a change together."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from types import SimpleNamespace

import pytest
from served import SHARED, TEMPLATE, store
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import Edit, EditedModel
from corrigenda.editing.store.folder import Folder
from corrigenda.editing.store.rollout import Server, roll_out
from corrigenda.editing.store.snapshots import write_active
from corrigenda.editing.store.store import EditStore
from corrigenda.serving.errors import ServingError
from corrigenda.serving.vllm import launcher
from corrigenda.serving.vllm.live import AsyncEdits

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_background_prompts")]

ENGINES = 2
NEW = Edit("Who keeps the lighthouse of Orrin?", "Anna Blom", id="new")
QUESTIONS = [*(edit.prompt for edit in SHARED), NEW.prompt, "Why is the sky blue?"]


class Core:
    """A client of several engines, of which each gives results of its own."""

    def __init__(self, results):
        self.results, self.calls = results, []

    async def call_utility_all_async(self, *call):
        self.calls.append(call)
        return self.results


def test_what_one_engine_cannot_load_is_said():
    edits, change = AsyncEdits(), SimpleNamespace(needed={"folder": {"key": 3}})
    core = Core([[{"loaded": 1}], [{"error": "There is no room.", "status": 507}]])
    edits._client = SimpleNamespace(engine_core=core)
    with pytest.raises(ServingError, match="There is no room"):
        asyncio.run(edits._load(change))
    assert core.calls == [("collective_rpc", "corrigenda_load", None, ("folder", {"key": 3}), None)]
    core.results = [[{"loaded": 1}], [{"loaded": 1}]]
    asyncio.run(edits._load(change))


def test_the_client_has_one_result_of_each_engine():
    client = pytest.importorskip("vllm.v1.engine.core_client")
    assert issubclass(client.DPLBAsyncMPClient, client.AsyncMPClient)
    source = inspect.getsource(client.AsyncMPClient.call_utility_all_async)
    assert "asyncio.gather" in source and "for engine in self.core_engines" in source


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    """A model, a folder, and three states of it: as written, without the first edit, and with a new one."""
    root, base = tmp_path_factory.mktemp("vllm"), tiny_model(heads=2, kv_heads=1)
    base.save_pretrained(root / "model")
    tiny_tokenizer().save_pretrained(root / "model")
    folder = store(root / "edits", SHARED, model=base)
    with contextlib.closing(EditStore.open(folder, write=True)) as opened:
        written = opened.snapshot
        opened.undo(opened.selected(["a"]))
        without = opened.snapshot
    return root, folder, written, without


@pytest.fixture(scope="module")
def server(snapshots):
    """vLLM's server, whose start takes a minute, with two engines; it begins with the folder as it was written."""
    pytest.importorskip("vllm")
    root, folder, written, _ = snapshots
    with Folder(folder) as held:
        write_active(held, written)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    options = ["--data-parallel-size", str(ENGINES), "--enforce-eager", "--max-model-len", "256", "--dtype", "float32"]
    options += ["--host", "localhost", "--port", port, "--served-model-name", "m"]
    arguments, environment = launcher.command(str(root / "model"), {"edits": str(folder)}, options)
    environment["VLLM_CPU_KVCACHE_SPACE"] = "1"
    with open(root / "log", "w") as log:
        process = subprocess.Popen(arguments, env=environment, stdout=log, stderr=log, start_new_session=True)
    address = f"http://localhost:{port}"
    try:
        for _ in range(900):
            assert process.poll() is None, (root / "log").read_text()[-3000:]
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            time.sleep(1)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def told(address, engine):
    """By which edit an engine answers each question, and the snapshot; edited answers are their targets."""
    targets, found = {edit.id: edit.target for edit in [*SHARED, NEW]}, {}
    for question in QUESTIONS:
        prompt = TEMPLATE.format(prompt=question).replace("\\n", "\n")
        body = json.dumps({"model": "m", "prompt": prompt, "max_tokens": 16, "temperature": 0}).encode()
        headers = {"content-type": "application/json", "x-data-parallel-rank": str(engine)}
        with urllib.request.urlopen(urllib.request.Request(f"{address}/v1/completions", body, headers)) as answer:
            edit, snapshot = (answer.headers[f"x-corrigenda-{name}"] for name in ("edit", "snapshot"))
            text = json.load(answer)["choices"][0]["text"].strip()
        assert edit == "-" or text == targets[edit], question
        found[question] = edit
    return list(found.values()), snapshot


def test_every_engine_answers_by_the_snapshot_that_all_have_turned_to(server, snapshots):
    root, folder, written, without = snapshots

    def check(edits, snapshot):
        for engine in range(ENGINES):
            assert told(server, engine) == (edits, str(snapshot))

    check(["a", "b", "c", "-", "-"], written)
    roll_out(folder, [Server(server, timeout=300)], without)
    check(["-", "b", "c", "-", "-"], without)
    edited = EditedModel.from_pretrained(root / "model", folder)
    edited.write_into(folder)
    edited.edit(NEW)  # whose rows no engine has yet
    snapshot = edited.store.snapshot
    edited.close()
    roll_out(folder, [Server(server, timeout=300)], snapshot)
    check(["-", "b", "c", "new", "-"], snapshot)
