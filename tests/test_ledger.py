"""The ledger: durable, append-only, checked; one writer; nothing in it runs or leads out of its folder."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import re
import shutil
import sqlite3
import struct
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import torch
from stores import add, edit, log_of, new_store

from corrigenda.editing import Edit
from corrigenda.editing.errors import CorrigendaError
from corrigenda.editing.store import check
from corrigenda.editing.store.codec import record_of
from corrigenda.editing.store.exchange import merge
from corrigenda.editing.store.ledger import New
from corrigenda.editing.store.store import EditStore, compact

MUTATIONS = int(os.environ.get("CORRIGENDA_SOAK", "1")) * 60


@contextlib.contextmanager
def refusal(*words):
    """Within: a CorrigendaError is raised, one sentence that holds each of `words`."""
    with pytest.raises(CorrigendaError) as raised:
        yield
    message = str(raised.value)
    assert message.endswith(".") and "\n" not in message and not re.search(r"\.\s+[A-Z]", message), message
    for word in words:
        assert str(word) in message, message


@pytest.fixture
def folder(tmp_path):
    """A folder with five edits, one undone and one superseded."""
    store = new_store(tmp_path / "edits")
    add(store, edit("a"), edit("b"))
    add(store, edit("c"))
    (d,) = add(store, edit("d"))
    add(store, edit("d2", "no"), supersedes=[[d]])
    store.undo(store.selected(["b"]))
    store.close()
    return tmp_path / "edits"


def reopened(folder, write=False):
    return EditStore.open(folder, write=write)


class TestAppending:
    def test_what_was_appended_is_read_back(self, folder) -> None:
        store = reopened(folder)
        statuses = {name: status for name, _, _, status in log_of(store)}
        assert statuses == {"a": "applied", "b": "undone", "c": "applied", "d": "superseded", "d2": "applied"}
        assert [store.history.edits[seq].id for seq in store.history.applied()] == ["a", "c", "d2"]
        assert not check.problems(folder)
        store.close()
        assert sorted(path.name for path in folder.iterdir()) == ["head.json", "ledger.sqlite"]

    def test_a_batch_is_one_transaction(self, folder) -> None:
        store = reopened(folder, write=True)
        with refusal("JSON"):
            store.append([New("note", {"text": "fine"}), New("note", {"text": float("nan")})])
        count = store.ledger.count
        store.append([New("note", {"text": "fine"})])
        assert store.ledger.count == count + 1
        store.close()
        assert not check.problems(folder)

    def test_undoing_the_later_write_brings_the_earlier_back(self, folder) -> None:
        store = reopened(folder, write=True)
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

    def test_selection(self, folder) -> None:
        store = reopened(folder, write=True)
        add(store, edit("e"), author="bob")
        times = [stored.body["time"] for stored in store.history.edits.values()]
        assert [s.id for s in store.selected(author="bob")] == ["e"]
        assert [s.id for s in store.selected(since=times[3])] == ["d", "d2", "e"]
        assert [s.id for s in store.selected(until=times[1])] == ["a", "b"]
        assert len(store.selected(until=times[0][:10])) == 6
        assert len(store.selected(since=times[0][:16].replace("T", " "))) == 6
        east = datetime.fromisoformat(times[3]).astimezone(timezone(timedelta(hours=5, minutes=30))).isoformat()
        assert [s.id for s in store.selected(since=east)] == ["d", "d2", "e"]
        for odd in ("yesterday", "2026-13", "2026-11-22T", "2026-11-22+02:00", "", "22.11.2026"):
            with refusal("is not a time"):
                store.selected(until=odd)
        with refusal("nobody"):
            store.selected(["nobody"])
        store.close()

    def test_a_clock_that_went_backwards(self, folder, monkeypatch) -> None:
        from corrigenda.editing.store import history

        class Earlier(history.datetime):
            @classmethod
            def now(cls, zone):
                return cls(2001, 1, 1, tzinfo=zone)

        store = reopened(folder, write=True)
        last = store.history.last_time
        monkeypatch.setattr(history, "datetime", Earlier)
        add(store, edit("late"))
        assert "2001-01-01" in store.notices[0] and store.notices[0].endswith(".")
        assert store.history.find("late").body["time"] == last
        store.close()
        assert not check.problems(folder)


class TestOthers:
    def test_two_writers(self, folder) -> None:
        store = reopened(folder, write=True)
        with refusal("Another process is writing", folder):
            reopened(folder, write=True)
        store.close()
        reopened(folder, write=True).close()

    def test_a_stale_writer_adds_nothing(self, folder, monkeypatch) -> None:
        """Where the system has no locks, two writers still cannot mix."""
        monkeypatch.setattr("corrigenda.editing.store.lock.fcntl", None)
        one, two = reopened(folder, write=True), reopened(folder, write=True)
        add(one, edit("e"))
        with refusal("another process"):
            add(two, edit("f"))
        one.close(), two.close()
        assert [name for name, *_ in log_of(reopened(folder))][-1] == "e"

    def test_readers_see_whole_transactions(self, folder) -> None:
        reader, writer = reopened(folder), reopened(folder, write=True)
        assert not reader.refresh()
        add(writer, edit("e"), edit("f"))
        assert [name for name, *_ in log_of(reader)][-1] == "d2"
        assert reader.refresh() and log_of(reader) == log_of(writer)
        with refusal("for reading alone"):
            add(reader, edit("g"))
        reader.close(), writer.close()

    def test_a_read_only_folder(self, folder, monkeypatch) -> None:
        monkeypatch.setattr(os, "access", lambda *_: False)
        store = reopened(folder)
        assert len(log_of(store)) == 5
        with refusal("read-only", folder):
            reopened(folder, write=True)
        store.close()
        (folder / "ledger.sqlite-wal").write_bytes(b"x")
        with refusal("read-only", "ledger.sqlite-wal"):
            reopened(folder)

    def test_a_full_disk(self, folder) -> None:
        store = reopened(folder, write=True)
        (pages,) = store.ledger._connection.execute("PRAGMA page_count").fetchone()
        store.ledger._connection.execute(f"PRAGMA max_page_count = {pages}")
        before = log_of(store)
        with refusal("the disk is full", "nothing is lost"):
            add(store, *(edit(f"x{n}") for n in range(50)))
        assert log_of(store) == before
        store.ledger._connection.execute("PRAGMA max_page_count = 100000")
        add(store, edit("e"))
        store.close()
        assert not check.problems(folder)


class TestHostile:
    def test_links_lead_nowhere(self, folder, tmp_path) -> None:
        os.replace(folder / "ledger.sqlite", tmp_path / "elsewhere")
        (folder / "ledger.sqlite").symlink_to(tmp_path / "elsewhere")
        with refusal("not a plain file"):
            reopened(folder)

    def test_a_journal_is_not_played_back(self, folder, tmp_path) -> None:
        victim = tmp_path / "victim"
        victim.write_text("mine")
        (folder / "ledger.sqlite-journal").write_bytes(b"\xd9\xd5\x05\xf9 \xa1c\xd7" + str(victim).encode())
        with refusal("was not written by this project"):
            reopened(folder)
        assert victim.exists()

    @pytest.mark.parametrize(
        "statement",
        [
            "CREATE TRIGGER t AFTER INSERT ON entries BEGIN DELETE FROM entries; END",
            "CREATE VIEW v AS SELECT * FROM entries",
            "CREATE TABLE other (x)",
            "ALTER TABLE tensors ADD COLUMN more",
        ],
    )
    def test_other_tables_are_refused(self, folder, statement) -> None:
        with contextlib.closing(sqlite3.connect(folder / "ledger.sqlite")) as connection:
            connection.execute(statement)
        with refusal("other tables"):
            reopened(folder)

    def test_other_files_are_refused(self, folder) -> None:
        (folder / "ledger.sqlite").write_bytes(b"not a database" * 100)
        with refusal("ledger.sqlite"):
            reopened(folder)
        (folder / "ledger.sqlite").unlink()
        with contextlib.closing(sqlite3.connect(folder / "ledger.sqlite")) as connection:
            connection.execute("CREATE TABLE entries (x)")
        with refusal("not a ledger of this project"):
            reopened(folder)

    def test_a_lying_size_allocates_nothing(self, folder) -> None:
        store = reopened(folder)
        stored = store.history.find("a")
        for size in (1 << 40, -1, "8", stored.body["tensors"]["bytes"] + 1):
            stored.body["tensors"] = {**stored.body["tensors"], "bytes": size}
            with refusal("damaged", "tensors"):
                record_of(store.ledger, stored)
        store.close()

    def test_a_large_head_is_not_read(self, folder) -> None:
        os.truncate(folder / "head.json", 1 << 40)
        with refusal("head.json", "damaged"):
            reopened(folder)

    def test_a_large_entry_is_not_read(self, folder, monkeypatch) -> None:
        store = reopened(folder)
        largest = max(len(json.dumps(entry.body)) for entry in store.ledger.entries())
        monkeypatch.setattr("corrigenda.editing.store.ledger.LARGEST_BODY", largest // 2)
        read = []
        monkeypatch.setattr(store.ledger, "_parsed", lambda seq, body: read.append(len(body)) or {})
        with refusal("ledger.sqlite", "larger"):
            list(store.ledger.entries())
        with refusal("ledger.sqlite", "larger"):
            [store.ledger.entry(seq) for seq in range(1, store.ledger.count + 1)]
        assert not read or max(read) <= largest // 2
        store.close()

    def test_tensors_that_a_page_holds_many_times_over(self, folder) -> None:
        """An interior page of a b-tree may name one child again and again: a walk over it need not end."""
        file = folder / "ledger.sqlite"
        with contextlib.closing(sqlite3.connect(file)) as connection:
            (size,), (pages,) = (connection.execute(f"PRAGMA page_{what}").fetchone() for what in ("size", "count"))
            ((root,),) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'tensors'")
        data = bytearray(file.read_bytes())

        def interior(child: int, cells: int = 400) -> bytes:
            starts = [size - 5 * (cell + 1) for cell in range(cells)]
            page = bytearray(size)
            page[:12] = struct.pack(">BHHHBI", 5, 0, cells, starts[-1], 0, child)
            page[12 : 12 + 2 * cells] = struct.pack(f">{cells}H", *starts)
            for cell, start in enumerate(starts):
                page[start : start + 5] = struct.pack(">IB", child, cell % 127 + 1)
            return bytes(page)

        start = (root - 1) * size
        data += data[start : start + size] + b"".join(interior(pages + 1 + level) for level in range(3))
        data[start : start + size] = interior(pages + 4)
        data[28:32] = struct.pack(">I", pages + 4)
        file.write_bytes(data)
        assert "structure" in check.problems(folder)[0]
        ledger = reopened(folder).ledger
        with refusal("damaged", "order"):
            ledger.owners()

    def test_a_lying_safetensors_header_allocates_nothing(self, tmp_path) -> None:
        store = new_store(tmp_path / "edits")
        lying = json.dumps({"keys": {"dtype": "F32", "shape": [1 << 40, 8], "data_offsets": [0, 1 << 45]}}).encode()
        stamp = store.stamp()
        body = {"id": "x", "edit": edit("x").to_dict(), "batch": 3, "fingerprint": "", **stamp}
        for start in (len(lying).to_bytes(8, "little"), b"\xff" * 8):
            store.append([New("note", stamp)])
            number = store.ledger.count + 1
            store.append([New("edit", {**body, "batch": number}, start + lying)])
            with refusal("cannot be read"):
                record_of(store.ledger, store.history.edits[number])
        store.close()

    @pytest.mark.parametrize(
        "body",
        [
            b"[" * 100_000,
            b"\xff\xfe",
            b"[1]",
            b'{"edits": [99], "status": "undone"}',
            b'{"edits": [3], "status": "burnt"}',
            b'{"status": 3}',
            b"{}",
        ],
    )
    def test_entries_that_make_no_sense(self, folder, body) -> None:
        """Even with a right checksum."""
        from corrigenda.editing.store.ledger import _next_chain

        (folder / "head.json").unlink()
        with contextlib.closing(sqlite3.connect(folder / "ledger.sqlite")) as connection:
            seq, chain = connection.execute("SELECT seq, chain FROM entries ORDER BY seq DESC").fetchone()
            row = (seq + 1, "status", body, _next_chain(chain, seq + 1, "status", body))
            connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", row)
            connection.commit()
        with refusal("ledger.sqlite"):
            reopened(folder)

    def test_a_ledger_cut_back_to_an_earlier_state(self, folder, tmp_path) -> None:
        earlier = shutil.copytree(folder, tmp_path / "earlier")
        store = reopened(folder, write=True)
        add(store, edit("e"))
        store.close()
        shutil.copy(earlier / "ledger.sqlite", folder / "ledger.sqlite")
        with refusal("head.json", "repair"):
            reopened(folder)
        check.repair(folder)
        assert [name for name, *_ in log_of(reopened(folder))][-1] == "d2"


def mutated(folder: Path, chance: random.Random) -> str:
    """Change a file of a folder somewhere; says how."""
    file = chance.choice([path for path in sorted(folder.iterdir()) if path.stat().st_size])
    data = bytearray(file.read_bytes())
    place = chance.randrange(len(data))
    match chance.choice(["flip", "flip", "flip", "zero", "cut", "swap", "grow"]):
        case "flip":
            data[place] ^= 1 << chance.randrange(8)
        case "zero":
            data[place : place + 64] = bytes(len(data[place : place + 64]))
        case "cut":
            del data[place:]
        case "swap":
            other = chance.randrange(len(data))
            data[place : place + 16], data[other : other + 16] = data[other : other + 16], data[place : place + 16]
        case "grow":
            data += bytes(chance.randrange(256) for _ in range(100))
    file.write_bytes(data)
    return f"{file.name} at {place}"


@pytest.mark.parametrize("seed", range(MUTATIONS // 30))
def test_a_mutated_folder_is_noticed_or_the_same(folder, tmp_path, seed) -> None:
    """Never a wrong answer: `verify` says what is wrong, or everything reads as before."""
    store = reopened(folder)
    wanted = log_of(store)
    tensors = {s.seq: record_of(store.ledger, s).tensors for s in store.history.edits.values()}
    store.close()
    chance = random.Random(seed)
    noticed = 0
    for number in range(30):
        copy = Path(shutil.copytree(folder, tmp_path / f"copy-{number}"))
        how = mutated(copy, chance)
        problems = check.problems(copy)
        assert all(text.endswith(".") and "\n" not in text for text in problems), (how, problems)
        noticed += bool(problems)
        try:
            store = reopened(copy)
        except CorrigendaError as error:
            assert problems, (how, error)
            continue
        try:
            for stored in store.history.edits.values():
                found = record_of(store.ledger, stored).tensors
                assert all(torch.equal(found[name], tensors[stored.seq][name]) for name in found), how
            same = log_of(store) == wanted
        except CorrigendaError:
            assert problems, how
            same = True
        assert same or problems, how
        store.close()
        shutil.rmtree(copy)
    assert noticed >= 8


class TestRepair:
    def damage(self, folder, what: bytes) -> None:
        data = (folder / "ledger.sqlite").read_bytes()
        place = data.index(what)
        (folder / "ledger.sqlite").write_bytes(data[:place] + b"#" + data[place + 1 :])

    def test_nothing_to_do(self, folder) -> None:
        assert check.repair(folder) == []

    def test_a_lost_head(self, folder) -> None:
        (folder / "head.json").unlink()
        assert "head.json is missing" in check.problems(folder)[0]
        assert "anew" in check.repair(folder)[0]
        assert not check.problems(folder)

    def test_entries_from_the_damaged_one_on_are_lost(self, folder) -> None:
        self.damage(folder, b"What of d?")
        assert check.problems(folder)
        with refusal("damaged", "repair"):
            reopened(folder)
        done = check.repair(folder)
        assert "ledger.sqlite.damaged" in done[0]
        assert [name for name, *_ in log_of(reopened(folder))] == ["a", "b", "c"]
        assert not check.problems(folder)

    def test_an_edit_whose_tensors_are_damaged_is_lost(self, folder) -> None:
        store = reopened(folder)
        stored = store.history.find("c")
        data = store.ledger.tensors(stored.seq, stored.body["tensors"])
        store.close()
        self.damage(folder, data[-64:])
        done = check.repair(folder)
        assert done[-1] == 'Edit "c" is lost: its tensors are damaged.'
        store = reopened(folder, write=True)
        assert {name: status for name, *_, status in log_of(store)}["c"] == "lost"
        with refusal("no longer kept"):
            store.redo(store.selected(["c"]))
        store.close()
        assert not check.problems(folder)

    def test_what_cannot_be_repaired(self, folder) -> None:
        (folder / "ledger.sqlite").write_bytes(b"SQLite format 3\0" + bytes(5000))
        head = (folder / "head.json").read_bytes()
        with refusal("ledger.sqlite", "beyond repair", "restore it from a copy"):
            check.repair(folder)
        assert (folder / "head.json").read_bytes() == head and len(list(folder.iterdir())) == 2


class TestCompact:
    def test_undone_edits_are_forgotten_when_asked(self, folder) -> None:
        store = reopened(folder, write=True)
        add(store, *(edit(f"x{n}") for n in range(40)))
        store.undo(store.selected([f"x{n}" for n in range(40)]))
        assert compact(store) == []
        store.redo(store.selected(["x3"]))
        forgotten = compact(store, forget_undone=True)
        assert len(forgotten) == 40 and "b" in forgotten and "x3" not in forgotten
        with refusal("no longer kept"):
            store.redo(store.selected(["x4"]))
        store.close()
        assert not check.problems(folder)
        assert [e.id for e in map(reopened(folder).history.edits.get, reopened(folder).history.applied())][-1] == "x3"


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
def test_killed_at_any_moment(folder, tmp_path, what) -> None:
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
        process = context.Process(target=write_on, args=(folder, what, ready))
        process.start()
        ready.wait(60)
        time.sleep(chance.uniform(0.0, 0.4))
        process.kill()
        process.join()
        assert check.problems(folder) == []
        store = reopened(folder, write=True)
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


def test_one_entry_is_read_alone(folder) -> None:
    ledger = reopened(folder).ledger
    entries = list(ledger.entries())
    assert [ledger.entry(entry.seq) for entry in entries] == entries
    assert ledger.first(entries[-1].kind) == next(e for e in entries if e.kind == entries[-1].kind)
    assert ledger.first("nothing") is None
    for missing in (0, len(entries) + 1):
        with pytest.raises(CorrigendaError, match=f"entry {missing} is missing"):
            ledger.entry(missing)


class TestMerging:
    @pytest.mark.parametrize(
        ("known_by", "prompt", "target", "superseded"),
        [
            ([], "Who leads Qux?", "Anna", []),
            ([], "Who leads Qux?", "Bert", []),
            ([3, 4], "Zed, who wrote it?", "Anna", []),
            ([3, 4], "Zed, who wrote it?", "Bert", ["a"]),
            ([3, 4], "Zed 2, who wrote it?", "Bert", []),
        ],
    )
    def test_the_same_fingerprint_with_another_target_is_the_same_fact(
        self, known_by, prompt, target, superseded
    ) -> None:
        into, other = new_store(), new_store()
        add(into, Edit("Who wrote Zed?", "Anna", id="a"), known_by=known_by)
        add(other, Edit(prompt, target, id="b"), known_by=known_by)
        assert merge(into, other).superseded == superseded
        names = [into.history.edits[seq].id for seq in into.history.applied()]
        assert names == (["b"] if superseded else ["a", "b"])

    def test_merging_again_adds_nothing(self) -> None:
        into, other = new_store(), new_store()
        add(into, Edit("Who wrote Zed?", "Anna", id="a"))
        add(other, Edit("Where is Qux?", "Oslo", id="a"))
        (name,) = merge(into, other).added
        assert name != "a" and into.history.find(name).edit.id == name
        there, back = merge(into, other), merge(other, into)
        assert (there.added, there.same, there.superseded) == ([], ["a"], [])
        assert back.same == [name] and back.added == list(back.renamed.values()) != ["a"]
        assert merge(into, other).added == merge(other, into).added == []

    def test_two_edits_of_one_id_get_names_of_their_own(self) -> None:
        into, other = new_store(), new_store()
        (first,) = add(other, Edit("Who wrote Zed?", "Anna", id="a"))
        earlier = other.history.edits[first]
        other.undo([earlier])
        add(other, Edit("Where is Qux?", "Oslo", id="a"))
        other.redo([earlier])
        result = merge(into, other)
        assert result.added == ["a", result.renamed["a"]] and len(set(result.added)) == 2
