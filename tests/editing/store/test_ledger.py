"""The ledger: durable, append-only; one writer, many readers; undo, redo and compaction."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from stores import add, edit, log_of, new_store, refusal, reopened

from corrigenda.editing import Edit
from corrigenda.editing.errors import CorrigendaError
from corrigenda.editing.store import check
from corrigenda.editing.store.exchange import merge
from corrigenda.editing.store.ledger import New
from corrigenda.editing.store.selection import Selection
from corrigenda.editing.store.store import EditStore, compact


class TestAppending:
    def test_what_was_appended_is_read_back(self, edits_folder) -> None:
        store = reopened(edits_folder)
        statuses = {name: status for name, _, _, status in log_of(store)}
        assert statuses == {"a": "applied", "b": "undone", "c": "applied", "d": "superseded", "d2": "applied"}
        assert [store.history.edits[seq].id for seq in store.history.applied()] == ["a", "c", "d2"]
        assert not check.problems(edits_folder)
        store.close()
        assert sorted(path.name for path in edits_folder.iterdir()) == ["head.json", "ledger.sqlite"]

    def test_a_batch_is_one_transaction(self, edits_folder) -> None:
        store = reopened(edits_folder, write=True)
        with refusal("JSON"):
            store.append([New("note", {"text": "fine"}), New("note", {"text": float("nan")})])
        count = store.ledger.count
        store.append([New("note", {"text": "fine"})])
        assert store.ledger.count == count + 1
        store.close()
        assert not check.problems(edits_folder)

    def test_undoing_the_later_write_brings_the_earlier_back(self, edits_folder) -> None:
        store = reopened(edits_folder, write=True)
        change = store.undo(store.selected(["d2"]))
        assert change.notes == ['Edit "d" of the same fact is in again.']
        assert {name: status for name, *_, status in log_of(store)}["d"] == "applied"
        store.undo(store.selected(["d"]))
        store.redo(store.selected(["d2"]))
        change = store.redo(store.selected(["d"]))
        assert "stays superseded" in change.notes[0]
        store.close()

    def test_undoing_an_id_that_was_used_again(self) -> None:
        store = new_store()
        (first,) = add(store, Edit("Who leads Zed?", "Anna", id="a"))
        (b,) = add(store, Edit("Who leads Zed?", "Bert", id="b"), supersedes=[[first]])
        (second,) = add(store, Edit("Where is Qux?", "Oslo", id="a"))

        def turned(what, name):
            chosen = store.selected([name], wanted=what == "undo")
            return [stored.seq for stored in getattr(store, what)(chosen).edits]

        assert turned("undo", "a") == [second] and turned("undo", "b") == [b]
        assert turned("undo", "a") == [first] and store.history.applied() == []
        assert [turned("redo", "a"), turned("redo", "a"), turned("redo", "a")] == [[second], [first], []]
        store.redo(store.selected(["b"], wanted=False))
        add(store, Edit("Where is Qux?", "Rome", id="c"), supersedes=[[second]])
        assert turned("undo", "a") == [second]

    def test_selection(self, edits_folder) -> None:
        store = reopened(edits_folder, write=True)
        add(store, edit("e"), author="bob")
        times = [stored.body["time"] for stored in store.history.edits.values()]
        assert [s.id for s in store.selected(Selection(by="bob"))] == ["e"]
        assert [s.id for s in store.selected(Selection(since=times[3]))] == ["d", "d2", "e"]
        assert [s.id for s in store.selected(Selection(until=times[1]))] == ["a", "b"]
        assert len(store.selected(Selection(until=times[0][:10]))) == 6
        assert len(store.selected(Selection(since=times[0][:16].replace("T", " ")))) == 6
        east = datetime.fromisoformat(times[3]).astimezone(timezone(timedelta(hours=5, minutes=30))).isoformat()
        assert [s.id for s in store.selected(Selection(since=east))] == ["d", "d2", "e"]
        for odd in ("yesterday", "2026-13", "2026-11-22T", "2026-11-22+02:00", "", "22.11.2026"):
            with refusal("is not a time"):
                store.selected(Selection(until=odd))
        with refusal("nobody"):
            store.selected(["nobody"])
        store.close()

    def test_scores_of_an_earlier_version_have_the_names_of_this_one(self, edits_folder) -> None:
        store = reopened(edits_folder, write=True)
        stored = store.history.find("a")
        store.append([New("scores", {"scores": {str(stored.seq): {"rel": 1.0, "routed_loc": 0.25}}, **store.stamp()})])
        store.close()
        store = reopened(edits_folder)
        assert store.history.find("a").scores == {"rel": 1.0, "misfires": 0.25}
        store.close()

    def test_a_clock_that_went_backwards(self, edits_folder, monkeypatch) -> None:
        from corrigenda.editing.store import history

        class Earlier(history.datetime):
            @classmethod
            def now(cls, zone):
                return cls(2001, 1, 1, tzinfo=zone)

        store = reopened(edits_folder, write=True)
        last = store.history.last_time
        monkeypatch.setattr(history, "datetime", Earlier)
        add(store, edit("late"))
        assert "2001-01-01" in store.notices[0] and store.notices[0].endswith(".")
        assert store.history.find("late").body["time"] == last
        store.close()
        assert not check.problems(edits_folder)


class TestOthers:
    def test_two_writers(self, edits_folder) -> None:
        store = reopened(edits_folder, write=True)
        with refusal("Another process is writing", edits_folder):
            reopened(edits_folder, write=True)
        store.close()
        reopened(edits_folder, write=True).close()

    def test_a_stale_writer_adds_nothing(self, edits_folder, monkeypatch) -> None:
        """Where the system has no locks, two writers still cannot mix."""
        monkeypatch.setattr("corrigenda.editing.store.folder.fcntl", None)
        one, two = reopened(edits_folder, write=True), reopened(edits_folder, write=True)
        add(one, edit("e"))
        with refusal("another process"):
            add(two, edit("f"))
        one.close(), two.close()
        assert [name for name, *_ in log_of(reopened(edits_folder))][-1] == "e"

    def test_readers_see_whole_transactions(self, edits_folder) -> None:
        reader, writer = reopened(edits_folder), reopened(edits_folder, write=True)
        assert not reader.refresh()
        add(writer, edit("e"), edit("f"))
        assert [name for name, *_ in log_of(reader)][-1] == "d2"
        assert reader.refresh() and log_of(reader) == log_of(writer)
        with refusal("for reading alone"):
            add(reader, edit("g"))
        reader.close(), writer.close()

    def test_a_read_only_folder(self, edits_folder, monkeypatch) -> None:
        monkeypatch.setattr(os, "access", lambda *_: False)
        store = reopened(edits_folder)
        assert len(log_of(store)) == 5
        with refusal("read-only", edits_folder):
            reopened(edits_folder, write=True)
        store.close()
        (edits_folder / "ledger.sqlite-wal").write_bytes(b"x")
        with refusal("read-only", "ledger.sqlite-wal"):
            reopened(edits_folder)

    def test_a_full_disk(self, edits_folder) -> None:
        store = reopened(edits_folder, write=True)
        (pages,) = store.ledger._connection.execute("PRAGMA page_count").fetchone()
        store.ledger._connection.execute(f"PRAGMA max_page_count = {pages}")
        before = log_of(store)
        with refusal("the disk is full", "nothing is lost"):
            add(store, *(edit(f"x{n}") for n in range(50)))
        assert log_of(store) == before
        store.ledger._connection.execute("PRAGMA max_page_count = 100000")
        add(store, edit("e"))
        store.close()
        assert not check.problems(edits_folder)


class TestCompact:
    def test_undone_edits_are_forgotten_when_asked(self, edits_folder) -> None:
        store = reopened(edits_folder, write=True)
        add(store, *(edit(f"x{n}") for n in range(40)))
        store.undo(store.selected([f"x{n}" for n in range(40)]))
        assert compact(store) == []
        store.redo(store.selected(["x3"]))
        forgotten = compact(store, forget_undone=True)
        assert len(forgotten) == 40 and "b" in forgotten and "x3" not in forgotten
        with refusal("no longer kept"):
            store.redo(store.selected(["x4"]))
        store.close()
        assert not check.problems(edits_folder)
        assert [e.id for e in map(reopened(edits_folder).history.edits.get, reopened(edits_folder).history.applied())][
            -1
        ] == "x3"


def write_on(folder: Path, what: str, ready) -> None:
    """Change a store without end, and note each change once it was acknowledged."""
    store = EditStore.open(folder, write=True)
    done = folder.with_name("acknowledged").open("a", buffering=1)
    number = sum(name.startswith("n") for name, *_ in log_of(store))
    ready.set()
    while True:
        names = [f"n{number + i}" for i in range(4)]
        if what in ("edit", "compact"):
            add(store, *map(edit, names))
            done.write(" ".join(names) + "\n")
            number += 4
        if what == "compact":
            store.undo(store.selected(names[:1]))
            compact(store, forget_undone=True)
        elif what == "undo":
            getattr(store, "undo" if store.history.find("a").wanted else "redo")(store.selected(["a", "c"]))
        elif what == "merge":
            merge(store, EditStore.open(f"{folder}-other"))
            store.undo(store.selected([s.id for s in store.history.edits.values() if s.id[0] == "o" and s.wanted]))


@pytest.mark.parametrize("what", ["edit", "undo", "compact", "merge"])
def test_killed_at_any_moment(edits_folder, tmp_path, what) -> None:
    """After SIGKILL: it opens, `verify` passes, nothing acknowledged is lost, batches are whole."""
    if what == "merge":
        other = new_store(tmp_path / "edits-other")
        add(other, *(edit(f"o{n}") for n in range(30)))
        other.close()
    chance = random.Random(what)
    acknowledged = tmp_path / "acknowledged"
    acknowledged.touch()
    context = multiprocessing.get_context("fork")  # torch is imported already
    for _ in range(2 * int(os.environ.get("CORRIGENDA_SOAK", "1"))):
        ready = context.Event()
        process = context.Process(target=write_on, args=(edits_folder, what, ready))
        process.start()
        ready.wait(60)
        time.sleep(chance.uniform(0.0, 0.4))
        process.kill()
        process.join()
        assert check.problems(edits_folder) == []
        store = reopened(edits_folder, write=True)
        names = [name for name, *_ in log_of(store)]
        lines = acknowledged.read_text().split("\n")[:-1]
        if what in ("edit", "compact"):
            assert {name for line in lines for name in line.split()} <= set(names)
            assert sum(name.startswith("n") for name in names) % 4 == 0
        elif what == "undo":
            states = {store.history.find(name).wanted for name in ("a", "c")}
            assert len(states) == 1
        else:
            assert sum(name.startswith("o") for name in names) in (0, 30)
        store.close()


def test_one_entry_is_read_alone(edits_folder) -> None:
    ledger = reopened(edits_folder).ledger
    entries = list(ledger.entries())
    assert [ledger.entry(entry.seq) for entry in entries] == entries
    assert ledger.first(entries[-1].kind) == next(e for e in entries if e.kind == entries[-1].kind)
    assert ledger.first("nothing") is None
    for missing in (0, len(entries) + 1):
        with pytest.raises(CorrigendaError, match=f"entry {missing} is missing"):
            ledger.entry(missing)
