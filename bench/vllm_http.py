"""Rows of `serving_vllm.py` that ask a server: many at once, wrongly, and while its edits change."""

from __future__ import annotations

import random
import shutil
import statistics
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from serving_case import NEW_TOKENS, cut, equal
from vllm_server import Server

from corrigenda.editing.backbone.loading import load_tokenizer
from corrigenda.editing.store.store import EditStore
from corrigenda.serving import Catalogue, ServingSettings

SERVER = ("--dtype", "float32", "--max-model-len", "512", "--block-size", "32", "--max-num-seqs", "32")


def http(case):
    """A server: 32 requests at once, what it tells of them, and requests that make no sense."""
    rows = case.reference["plain"]
    edits = case.edits.resolve()
    with (
        Server(
            case.model, {"edits": str(edits), "root": str(edits.parent)}, case.work / "server.log", *SERVER
        ) as server,
        ThreadPoolExecutor(32) as clients,
    ):
        found = list(clients.map(lambda row: server.complete(row["prompt"], NEW_TOKENS), rows))
        table = {
            "HTTP, 32 at once": equal([cut(tokens) for _, tokens, _, _ in found], rows),
            "HTTP, the edit's id in the response": {
                "equal": sum(edit == row["edit"] for (_, _, edit, _), row in zip(found, rows)),
                "of": len(rows),
            },
        }
        streamed = [
            server.call("POST", "/v1/completions", {**asked, "stream": True})[1]["x-corrigenda-edit"]
            for asked in ({"model": "m", "prompt": row["prompt"], "max_tokens": 2} for row in rows[-10:])
        ]
        table["HTTP, the same where it is streamed"] = {
            "equal": sum(edit == (row["edit"] or "-") for edit, row in zip(streamed, rows[-10:])),
            "of": len(streamed),
        }
        metrics = server.call("GET", "/metrics")[2]
        edited = sum(row["edit"] is not None for row in [*rows, *rows[-10:]])
        told = f'corrigenda_requests_total{{outcome="edited",tenant=""}} {edited}.0' in metrics
        wrong = [
            (404, "DELETE", "/v1/edits/nobody", None),
            (403, "POST", "/v1/edits", {"store": "/etc"}),
            (403, "POST", "/v1/edits", {"store": "../../.."}),
            (404, "POST", "/v1/edits", {"store": "missing"}),
            (422, "POST", "/v1/edits", {"store": "model"}),
            (400, "POST", "/v1/edits", {"stor": "x"}),
            (400, "POST", "/v1/edits", b"{"),
            (400, "POST", "/v1/completions", {"model": "m", "prompt": "Hi", "vllm_xargs": {"tenant": "nobody"}}),
            (400, "POST", "/v1/completions", {"model": "m", "prompt": "Hi", "use_beam_search": True, "n": 2}),
        ]
        refused = [(wanted, *server.call(method, path, body)[::2]) for wanted, method, path, body in wrong]
        for wanted, status, answer in refused:
            print(wanted, status, answer)
        after = server.complete(rows[0]["prompt"], NEW_TOKENS)
        return table | {
            "metrics count what was edited": {"equal": int(told), "of": 1},
            "wrong requests, each its status and a sentence": {
                "equal": sum(wanted == status and "message" in str(answer) for wanted, status, answer in refused),
                "of": len(wrong),
            },
            "and the server goes on": equal([cut(after[1])], rows[:1]),
        }


def stream(case, requests=1000):
    """Requests while edits are undone, redone and loaded: each answer is right for the version that decided it."""
    refer, answers = case.reference, {}
    for edited, base in zip(refer["plain"], refer["base"]):
        answers[tuple(edited["prompt"])] = {edited["edit"]: edited["tokens"], None: base["tokens"]}
    folder = case.work / "changing"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(case.edits, folder)
    asked = [row for row in refer["plain"] if row["edit"] is not None][:16] + refer["plain"][-8:]
    changing = sorted({row["edit"] for row in asked if row["edit"]})
    applied = {1: {edit.id for edit in Ledger.applied(folder)}}
    problems, counts, waits, stop = [], Counter(), [], threading.Event()

    def change(server) -> None:
        random.seed(0)
        while not stop.is_set():
            edit = random.choice(changing)
            status, _, answer = server.call("DELETE", f"/v1/edits/{edit}")
            calls = [("undo", status, answer)]
            Ledger.redo(folder, edit)
            start = time.perf_counter()
            calls.append(("load", *server.call("POST", "/v1/edits", {"store": str(folder.resolve())})[::2]))
            waits.append(time.perf_counter() - start)
            for kind, status, answer in calls:
                counts[kind] += 1
                if status != 200:
                    problems.append((kind, status, answer))
                    return
                before = applied[max(applied)]
                applied[answer["version"]] = (before | set(answer["added"])) - set(answer["removed"])

    def one(number: int):
        row = asked[number % len(asked)]
        return row, server.complete(row["prompt"], NEW_TOKENS)

    with (
        Server(case.model, {"edits": str(folder)}, case.work / "stream-server.log", *SERVER) as server,
        ThreadPoolExecutor(24) as clients,
    ):
        writer = threading.Thread(target=change, args=(server,))
        writer.start()
        found = list(clients.map(one, range(requests)))
        stop.set()
        writer.join()
    failed, right = len(problems), 0
    for row, (status, tokens, edit, version) in found:
        expected = row["edit"] if row["edit"] in applied.get(version, ()) else None
        if status == 200 and edit != expected:
            # Which edits are in moves the threshold a little: a question near it may go either way.
            expected = decided(case, applied[version], row["prompt"])
        good = status == 200 and edit == expected and cut(tokens) == answers[tuple(row["prompt"])].get(edit)
        right += good
        if not good:
            problems.append((status, tokens, edit, expected, version))
    print(*problems[:20], sep="\n")
    versions = len({version for _, (_, _, _, version) in found})
    return {
        "requests while edits change": {"equal": right, "of": requests, "versions": versions, **counts},
        "changes without an error": {
            "equal": sum(counts.values()) - failed,
            "of": sum(counts.values()),
            "median_seconds_under_load": round(statistics.median(waits), 3),
        },
    }


def decided(case, applied, prompt):
    """What a catalogue decides where just these edits are in."""
    folder = case.work / "then"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(case.edits, folder)
    store = EditStore.open(folder, write=True)
    store.undo([edit for edit in Ledger.applied(folder) if edit.id not in applied])
    store.close()
    found = Catalogue(load_tokenizer(case.model), ServingSettings.parse(folder)).admit(prompt).edit
    return found and found.id


class Ledger:
    """A store as another process sees it."""

    @staticmethod
    def applied(folder):
        store = EditStore.open(folder)
        try:
            return [store.history.edits[seq] for seq in store.history.applied()]
        finally:
            store.close()

    @staticmethod
    def redo(folder, edit) -> None:
        store = EditStore.open(folder, write=True)
        try:
            store.redo(store.selected([edit]))
        finally:
            store.close()
