"""A server under load for long: does it ever answer wrongly, and does it grow?

32 connections ask, some drop their streams; edits are undone and put in again each second; tenants come; the server is
killed in the middle of changes and starts again. Each answer must be that of the same request alone, by the edits of
the version that it names. Memory, descriptors and threads are those of all the server's processes.

    python bench/soak.py --stack transformers --minutes 10 --json bench/results/cpu/soak-transformers.json
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from record import provenance, write_json

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))
TEMPLATE = "Question: {}\nAnswer:"
FACTS = {
    "What is the capital of Zubrowka?": "Lutz City",
    "Who founded the Krellin museum?": "Anna Blom",
    "What does Kmelt make?": "red bricks",
    "Who leads Vantrello Foods?": "Ines Okafor",
    "Where was Orla Dunmore born?": "Port Adlen",
    "Which river passes Tessenby?": "the Ilvan",
}
OTHERS = ("Why is the sky blue?", "How many legs has a spider?", "Who wrote the play about the moor of Venice?")
FILLERS = ("", "You are a helpful assistant. Answer briefly. ", "It was a long day, and nobody knew the way home. " * 6)
OPTIONS = {
    # Room for the cache is else taken by how much memory is free, and fills up as it is used.
    "transformers": (
        *("--dtype", "float32", "--cb-block-size", "32", "--cb-num-blocks", "256", "--cb-max-batch-tokens", "512"),
    ),
    "vllm": (
        *("--dtype", "float32", "--max-model-len", "512", "--block-size", "32", "--max-num-seqs", "32"),
        "--enforce-eager",  # compiling takes minutes at each start
    ),
}
KILLS = 2
CUT_OFF = (OSError, ValueError, http.client.HTTPException)
"""What a client meets whose server is killed, wherever in the answer that happens."""
TENANTS = 4


class Server:
    """`corrigenda serve` in processes of its own."""

    def __init__(self, stack: str, work: Path, name: str = "server") -> None:
        self.stack, self.work, self.name, self.lives = stack, work, name, 0
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [sys.executable, "-m", "corrigenda.editing.cli", "serve", "model", "--edits-dir", "edits"]
        command += ["--root", ".", "--stack", self.stack, "--", "--host", "127.0.0.1", "--port", str(self.port)]
        with open(self.work / f"{self.name}-{self.lives}.log", "w") as log:
            self.process = subprocess.Popen(
                [*command, *OPTIONS[self.stack]],
                cwd=self.work,
                env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.lives += 1
        until = time.monotonic() + 400
        while time.monotonic() < until and self.process.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            time.sleep(0.5)
        raise RuntimeError(f"The server did not start; see {log.name}.")

    def stop(self, how: int = signal.SIGTERM) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, how)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def call(self, method: str, path: str, body: Any = None, tenant: str | None = None, drop: bool = False) -> tuple:
        """Status, headers and JSON; of a stream that is dropped, after its first bytes, no JSON."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"} | ({} if tenant is None else {"x-corrigenda-tenant": tenant})
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                if drop:
                    answer.read(20)
                    return answer.status, answer.headers, None
                return answer.status, answer.headers, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read().decode(errors="replace")

    def ask(self, prompt: str, tokens: int, tenant: str | None = None, drop: bool = False) -> tuple:
        """Status, text, the edit and the version that decided it."""
        body = {"model": "model", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": drop}
        status, headers, answer = self.call("POST", "/v1/completions", body, tenant, drop)
        edit, version = headers.get("x-corrigenda-edit"), headers.get("x-corrigenda-version")
        text = answer["choices"][0]["text"] if status == 200 and not drop else answer
        return status, text, None if edit in (None, "-") else edit, None if version is None else int(version)

    def holds(self) -> dict[str, float]:
        """What its processes have: memory in MB (a page that two share counted by halves), descriptors, threads."""
        found = Counter()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[3]) == self.process.pid:  # its session
                    rollup = (folder / "smaps_rollup").read_text()
                    found["megabytes"] += int(rollup.split("Pss:")[1].split()[0]) / 1024
                    found["descriptors"] += len(os.listdir(folder / "fd"))
                    found["threads"] += len(os.listdir(folder / "task"))
        return dict(found)


def prepare(work: Path) -> None:
    """A tiny model, a folder of edits, and one of a tenant that contradicts it."""
    from tiny import tiny_model, tiny_tokenizer

    from corrigenda.editing import AssociativeConfig, Edit, EditedModel

    model, tokenizer = tiny_model(hidden=128, ffn=320), tiny_tokenizer()
    model.save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")
    config = AssociativeConfig(contexts=2, steps=15)
    for name, facts in (("edits", FACTS), ("tenant", {next(iter(FACTS)): "Old Harbour"})):
        edited = EditedModel.wrap(model, tokenizer, config, template=TEMPLATE.format("{prompt}"))
        edited.edit(Edit(prompt, target, id=f"{name}-{n}") for n, (prompt, target) in enumerate(facts.items()))
        edited.save_pretrained(work / name)
        edited.detach()
    for number in range(
        TENANTS
    ):  # each its own folder: one that was a tenant's is no other's for as long as a server runs
        shutil.copytree(work / "tenant", work / f"tenant-{number}")


def applied(work: Path) -> frozenset[str]:
    from corrigenda.editing.store.store import EditStore

    store = EditStore.open(work / "edits")
    found = frozenset(store.history.edits[seq].id for seq in store.history.applied())
    store.close()
    return found


def redo(work: Path, edit: str) -> None:
    from corrigenda.editing.store.store import EditStore

    store = EditStore.open(work / "edits", write=True)
    store.redo(store.selected([edit], wanted=False))
    store.close()


class Soak:
    """The load on a server, and what came of it."""

    def __init__(self, server: Server, work: Path, seconds: float, connections: int) -> None:
        self.server, self.work, self.seconds, self.connections = server, work, seconds, connections
        self.ids = {TEMPLATE.format(prompt): f"edits-{n}" for n, prompt in enumerate(FACTS)}
        self.alone: dict[tuple, str] = {}
        self.counts, self.problems, self.waits = Counter(), [], []
        self.found: list[tuple] = []
        self.versions: dict[tuple[int, int], frozenset[str]] = {}
        self.halted, self.over = threading.Event(), threading.Event()
        self.prompts = [filler + TEMPLATE.format(prompt) for filler in FILLERS for prompt in (*FACTS, *OTHERS)]

    def refer(self) -> None:
        """Each request alone: with all edits, and with none."""
        for edits in (True, False):
            if not edits:
                for edit in sorted(applied(self.work)):
                    status, _, answer = self.server.call("DELETE", f"/v1/edits/{edit}")
                    assert status == 200, answer
            for prompt in self.prompts:
                for tokens in (1, 6, 20):
                    status, text, edit, _ = self.server.ask(prompt, tokens)
                    assert status == 200, text
                    self.alone[prompt, tokens, edit] = text
        for edit in sorted(self.ids.values()):
            redo(self.work, edit)
        status, _, answer = self.server.call("POST", "/v1/edits", {"store": "edits"})
        assert status == 200, answer
        self.versions[self.server.lives, answer["version"]] = applied(self.work)

    def client(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self.over.is_set():
            if self.halted.is_set():
                time.sleep(0.1)
                continue
            prompt, tokens, drop = chance.choice(self.prompts), chance.choice((1, 6, 20)), chance.random() < 0.15
            life, start = self.server.lives, time.perf_counter()
            try:
                status, text, edit, version = self.server.ask(prompt, tokens, drop=drop)
            except CUT_OFF as error:
                # Only while the server is killed.
                self.counts["cut off by a kill" if self.halted.is_set() or life != self.server.lives else "failed"] += 1
                if not self.halted.is_set() and life == self.server.lives:
                    self.problems.append(f"{error!r} at {prompt!r}")
                    time.sleep(1)
                continue
            if drop:
                self.counts["streams dropped"] += 1
            elif status != 200:
                self.counts["refused"] += 1
                self.problems.append(f"{status} {text}")
            else:
                self.waits.append(time.perf_counter() - start)
                self.found.append((life, version, prompt, tokens, edit, text))

    def change(self) -> None:
        """A change each second: an undo, the same edit in again, a tenant's folder."""
        chance, number = random.Random(0), 0
        while not self.over.is_set():
            time.sleep(1)
            if self.halted.is_set():
                continue
            number += 1
            life = self.server.lives
            try:
                if number % 5 == 0:
                    self._tenant(f"tenant-{number // 5 % TENANTS}")
                    continue
                now = applied(self.work)
                if not now or (len(now) < len(FACTS) and chance.random() < 0.6):
                    redo(self.work, chance.choice(sorted(set(self.ids.values()) - now)))
                    status, _, answer = self.server.call("POST", "/v1/edits", {"store": "edits"})
                else:
                    status, _, answer = self.server.call("DELETE", f"/v1/edits/{chance.choice(sorted(now))}")
            except CUT_OFF as error:
                if not self.halted.is_set() and life == self.server.lives:
                    self.problems.append(f"a change failed: {error!r}")
                continue
            if status != 200:
                self.problems.append(f"a change: {status} {answer}")
                continue
            self.counts["changes"] += 1
            self.versions[life, answer["version"]] = applied(self.work)

    def _tenant(self, name: str) -> None:
        """A tenant comes, is answered by its own edit, and goes."""
        life, question = self.server.lives, next(iter(self.ids))
        for method, path, body in (
            ("POST", "/v1/edits", {"store": name, "tenant": name}),
            ("GET", None, None),
            ("DELETE", f"/v1/tenants?tenant={name}", None),
        ):
            if path is None:
                status, answer, edit, _ = self.server.ask(question, 6, tenant=name)
                if edit != "tenant-0":
                    self.problems.append(f"{name} is answered by {edit}: {answer}")
                continue
            status, _, answer = self.server.call(method, path, body)
            if status != 200:
                self.problems.append(f"{name}: {status} {answer}")
                return
            self.versions[life, answer["version"]] = applied(self.work)
        self.counts["tenants"] += 1

    def run(self) -> dict[str, Any]:
        threads = [threading.Thread(target=self.client, args=(seed,)) for seed in range(self.connections)]
        threads.append(threading.Thread(target=self.change))
        for thread in threads:
            thread.start()
        begin, samples, kills = time.monotonic(), [], 0
        while (passed := time.monotonic() - begin) < self.seconds:
            time.sleep(5)
            # The first third of the time: afterwards one server runs on, and must not grow.
            if kills < KILLS and passed > (kills + 1) * self.seconds / (3 * KILLS + 1):
                kills += 1
                begin += self._kill()
                samples = []
            samples.append((time.monotonic(), self.server.holds()))
        self.over.set()
        for thread in threads:
            thread.join()
        return self._result(samples, kills)

    def _kill(self) -> float:
        """SIGKILL amid what clients and the writer do, and a start from the same folder; how long that took."""
        start = time.monotonic()
        self.halted.set()
        self.server.stop(signal.SIGKILL)
        time.sleep(1)
        self.server.start()
        self.versions[self.server.lives, 1] = applied(self.work)
        self.halted.clear()
        return time.monotonic() - start

    def _result(self, samples: list[tuple[float, dict]], kills: int) -> dict[str, Any]:
        wrong = 0
        for life, version, prompt, tokens, edit, text in self.found:
            known = self.versions.get((life, version))
            question = TEMPLATE.format(prompt.split("Question: ")[1].split("\n")[0])
            expected = self.ids.get(question)
            expected = expected if known is not None and expected in known else None
            good = known is not None and edit == expected and self.alone[prompt, tokens, edit] == text
            wrong += not good
            if not good:
                self.problems.append(
                    f"version {version} of life {life}: {prompt!r} by {edit}, not {expected}: {text!r}"
                )
        third = max(1, len(samples) // 3)
        growth = {
            name: {
                "after the start": round(
                    statistics.median(s[1][name] for s in samples[third : 2 * third] or samples), 1
                ),
                "at the end": round(statistics.median(s[1][name] for s in samples[-third:]), 1),
            }
            for name in ("megabytes", "descriptors", "threads")
        }
        waits = sorted(self.waits)
        return {
            "minutes": round(self.seconds / 60, 1),
            "connections": self.connections,
            "answers": len(self.found),
            "wrong answers": wrong,
            "problems": self.problems[:20],
            **dict(self.counts),
            "versions of the edits": len({(life, version) for life, version, *_ in self.found}),
            "kills": kills,
            "seconds an answer": {
                "median": round(statistics.median(waits), 3),
                "95 %": round(waits[len(waits) * 95 // 100], 3),
            },
            "last server": {"minutes": round((samples[-1][0] - samples[0][0]) / 60, 1), **growth},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stack", choices=sorted(OPTIONS), default="transformers")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="soak-"))
    prepare(work)
    server = Server(given.stack, work)
    try:
        server.start()
        soak = Soak(server, work, given.minutes * 60, given.connections)
        soak.refer()
        found = {"stack": given.stack, **soak.run()}
    finally:
        if server.process is not None:
            server.stop()
    print(json.dumps(found, indent=2))
    if given.json is not None:
        write_json(given.json, {**provenance(), **found})
    if found["problems"]:
        sys.exit(f"Something went wrong; the server's logs are in {work}.")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
