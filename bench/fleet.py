"""Replicas under load that are turned from snapshot to snapshot: does one ever answer by a mixture?

Two servers share a folder of edits, and a tiny model. Clients ask both while `corrigenda rollout` turns them to states
of the folder, again and again; the roll-out and the servers are killed at random moments, and go on. Each answer must
be that of the same request alone by the edits of the snapshot that it names, and after each roll-out all servers name
one.

    python bench/fleet.py --rollouts 50 --requests 2000 --json bench/results/cpu/fleet.json
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from record import provenance, write_json
from soak import CUT_OFF, FACTS, OPTIONS, OTHERS, TEMPLATE, Server, prepare

from corrigenda.editing.store.store import EditStore

STATES = 6
TOKENS = 6
CLIENTS = 8
KILLED_ROLL_OUT, KILLED_SERVER = 0.5, 0.15
"""Shares of the roll-outs during which that is killed."""


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stack", choices=sorted(OPTIONS), default="transformers")
    parser.add_argument("--rollouts", type=int, default=50)
    parser.add_argument("--requests", type=int, default=2000, help="at least so many")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def states(folder: Path, chance: random.Random) -> dict[str, frozenset[str]]:
    """States of the folder by the names of their snapshots: all edits, none, and some; what is in effect in each."""
    found = {}
    store = EditStore.open(folder, write=True)
    ids = [stored.id for stored in store.history.edits.values()]
    wanted = [set(ids), set(), *(set(chance.sample(ids, chance.randrange(1, len(ids)))) for _ in range(STATES - 2))]
    for state in wanted:
        now = {stored.id for stored in store.history.edits.values() if stored.wanted}
        store.undo(store.selected(sorted(now - state)))
        store.redo(store.selected(sorted(state - now)))
        found[str(store.snapshot)] = frozenset(state)
    store.close()
    return found


class Fleet:
    """Servers of one folder, clients that ask them, and roll-outs."""

    def __init__(self, args, work: Path) -> None:
        self.work, self.folder = work, work / "edits"
        self.chance = random.Random(0)
        self.states = states(self.folder, self.chance)
        self.servers = [Server(args.stack, work, f"replica-{n}") for n in range(2)]
        self.ids = {TEMPLATE.format(prompt): f"edits-{n}" for n, prompt in enumerate(FACTS)}
        self.prompts = [TEMPLATE.format(prompt) for prompt in (*FACTS, *OTHERS)]
        self.alone: dict[tuple, str] = {}
        self.found: list[tuple] = []
        self.counts, self.problems = Counter(), []
        self.over = threading.Event()

    def ask(self, server: Server, prompt: str) -> tuple:
        body = {"model": "model", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
        status, headers, answer = server.call("POST", "/v1/completions", body)
        if status != 200:
            return status, None, None, answer
        edit = headers["x-corrigenda-edit"]
        return status, headers["x-corrigenda-snapshot"], None if edit == "-" else edit, answer["choices"][0]["text"]

    def rollout(self, snapshot: str) -> subprocess.Popen:
        addresses = ",".join(f"http://127.0.0.1:{server.port}" for server in self.servers)
        command = [sys.executable, "-m", "corrigenda.editing.cli", "rollout", str(self.folder), "--servers", addresses]
        return subprocess.Popen([*command, "--snapshot", snapshot, "--json"], stdout=subprocess.PIPE, text=True)

    def finish(self, snapshot: str) -> None:
        """Roll a snapshot out, however often it takes; then all servers must say that they serve it."""
        for _ in range(5):
            rolled = self.rollout(snapshot)
            said = rolled.communicate(timeout=300)[0]
            if rolled.returncode == 0:
                break
            self.counts["roll-outs that were run again"] += 1
        else:
            self.problems.append(f"{snapshot} was not rolled out: {said}")
        for server in self.servers:
            _, _, listing = server.call("GET", "/v1/edits")
            served = listing["stores"][0]["snapshot"]
            if served != snapshot:
                self.problems.append(f"{server.name} serves {served} after a roll-out of {snapshot}")

    def refer(self) -> None:
        """Each request alone: with all edits, and with none."""
        for snapshot in list(self.states)[:2]:
            self.finish(snapshot)
            for prompt in self.prompts:
                _, _, edit, text = self.ask(self.servers[0], prompt)
                self.alone[prompt, edit] = text

    def client(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self.over.is_set():
            server, prompt = chance.choice(self.servers), chance.choice(self.prompts)
            life = server.lives
            try:
                status, snapshot, edit, text = self.ask(server, prompt)
            except CUT_OFF:
                self.counts["cut off by a kill"] += 1
                time.sleep(0.2)
                continue
            if status != 200:
                self.counts["refused"] += 1
                self.problems.append(f"{status} {text}")
            else:
                self.found.append((server.name, life, snapshot, prompt, edit, text))

    def run(self, rollouts: int, requests: int) -> dict:
        clients = [threading.Thread(target=self.client, args=(seed,)) for seed in range(CLIENTS)]
        for client in clients:
            client.start()
        done = 0
        while done < rollouts or len(self.found) < requests:
            snapshot = self.chance.choice(list(self.states))
            if self.chance.random() < KILLED_SERVER:
                self.kill(self.chance.choice(self.servers), snapshot)
            elif self.chance.random() < KILLED_ROLL_OUT:
                rolled = self.rollout(self.chance.choice(list(self.states)))
                time.sleep(self.chance.uniform(1.0, 4.0))  # it starts in two seconds or so
                self.counts["roll-outs killed"] += rolled.poll() is None
                rolled.kill()
                rolled.communicate()
            self.finish(snapshot)
            done += 1
        self.over.set()
        for client in clients:
            client.join()
        return self.result(done)

    def kill(self, server: Server, snapshot: str) -> None:
        """SIGKILL of a server amid a roll-out, and a start from the same folder."""
        rolled = self.rollout(snapshot)
        time.sleep(self.chance.uniform(0.5, 4.0))
        server.stop(signal.SIGKILL)
        self.counts["servers killed"] += 1
        rolled.communicate()
        server.start()

    def result(self, done: int) -> dict:
        wrong = 0
        for name, life, snapshot, prompt, edit, text in self.found:
            state = self.states.get(snapshot)
            expected = self.ids.get(prompt) if state is not None and self.ids.get(prompt) in state else None
            if state is None or edit != expected or self.alone[prompt, edit] != text:
                wrong += 1
                self.problems.append(f"{name}, life {life}, {snapshot}: {prompt!r} by {edit}, not {expected}: {text!r}")
        return {
            "answers": len(self.found),
            "wrong answers": wrong,
            "snapshots that answered": len({row[2] for row in self.found}),
            "roll-outs": done,
            **dict(self.counts),
            "problems": self.problems[:20],
        }


def main():
    args = arguments()
    work = Path(tempfile.mkdtemp(prefix="fleet-"))
    prepare(work)
    fleet = Fleet(args, work)
    try:
        for server in fleet.servers:
            server.start()
        fleet.refer()
        found = {"stack": args.stack, "servers": len(fleet.servers), **fleet.run(args.rollouts, args.requests)}
    finally:
        fleet.over.set()
        for server in fleet.servers:
            if server.process is not None:
                server.stop()
    print(json.dumps(found, indent=2))
    if args.json is not None:
        write_json(args.json, {**provenance(), **found})
    if found["problems"]:
        sys.exit(f"Something went wrong; the servers' logs are in {work}.")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
