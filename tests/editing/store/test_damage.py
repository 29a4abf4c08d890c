"""Folders that are damaged or hostile: what is wrong is said, nothing runs or leads out, and repair keeps the rest."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sqlite3
from pathlib import Path

import pytest
import torch
from forged import circle
from stores import add, edit, log_of, new_store, refusal, reopened

from corrigenda.editing.errors import CorrigendaError
from corrigenda.editing.store import check
from corrigenda.editing.store.codec import record_of
from corrigenda.editing.store.ledger import Ledger, New
from corrigenda.editing.store.repair import repair

MUTATIONS = int(os.environ.get("CORRIGENDA_SOAK", "1")) * 60


class TestHostile:
    def test_links_lead_nowhere(self, edits_folder, tmp_path) -> None:
        os.replace(edits_folder / "ledger.sqlite", tmp_path / "elsewhere")
        (edits_folder / "ledger.sqlite").symlink_to(tmp_path / "elsewhere")
        with refusal("not a plain file"):
            reopened(edits_folder)

    def test_a_journal_is_not_played_back(self, edits_folder, tmp_path) -> None:
        victim = tmp_path / "victim"
        victim.write_text("mine")
        (edits_folder / "ledger.sqlite-journal").write_bytes(b"\xd9\xd5\x05\xf9 \xa1c\xd7" + str(victim).encode())
        with refusal("was not written by this project"):
            reopened(edits_folder)
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
    def test_other_tables_are_refused(self, edits_folder, statement) -> None:
        with contextlib.closing(sqlite3.connect(edits_folder / "ledger.sqlite")) as connection:
            connection.execute(statement)
        with refusal("other tables"):
            reopened(edits_folder)

    def test_other_files_are_refused(self, edits_folder) -> None:
        (edits_folder / "ledger.sqlite").write_bytes(b"not a database" * 100)
        with refusal("ledger.sqlite"):
            reopened(edits_folder)
        (edits_folder / "ledger.sqlite").unlink()
        with contextlib.closing(sqlite3.connect(edits_folder / "ledger.sqlite")) as connection:
            connection.execute("CREATE TABLE entries (x)")
        with refusal("not a ledger of this project"):
            reopened(edits_folder)

    def test_a_lying_size_allocates_nothing(self, edits_folder) -> None:
        store = reopened(edits_folder)
        stored = store.history.find("a")
        for size in (1 << 40, -1, "8", stored.body["tensors"]["bytes"] + 1):
            stored.body["tensors"] = {**stored.body["tensors"], "bytes": size}
            with refusal("damaged", "tensors"):
                record_of(store.ledger, stored)
        store.close()

    @pytest.mark.parametrize(
        "body", [{"id": "x"}, {"id": "x", "edit": {}, "for": "a"}, {"id": 7, "edit": 1, "for": "a"}]
    )
    def test_a_declined_edit_that_is_none(self, edits_folder, body) -> None:
        ledger = Ledger.open(edits_folder, write=True)
        list(ledger.entries())
        ledger.append([New("declined", {**body, "time": "2026-01-01"})])
        ledger.close()
        with refusal("ledger.sqlite", "makes no sense at entry", "(declined)"):
            reopened(edits_folder)

    def test_a_large_head_is_not_read(self, edits_folder) -> None:
        os.truncate(edits_folder / "head.json", 1 << 40)
        with refusal("head.json", "damaged"):
            reopened(edits_folder)

    def test_a_large_entry_is_not_read(self, edits_folder, monkeypatch) -> None:
        store = reopened(edits_folder)
        largest = max(len(json.dumps(entry.body)) for entry in store.ledger.entries())
        monkeypatch.setattr("corrigenda.editing.store.reading.LARGEST_BODY", largest // 2)
        read = []
        monkeypatch.setattr(store.ledger, "_parsed", lambda seq, body: read.append(len(body)) or {})
        with refusal("ledger.sqlite", "larger"):
            list(store.ledger.entries())
        with refusal("ledger.sqlite", "larger"):
            [store.ledger.entry(seq) for seq in range(1, store.ledger.count + 1)]
        assert not read or max(read) <= largest // 2
        store.close()

    def test_tensors_that_a_page_holds_many_times_over(self, edits_folder) -> None:
        """An interior page of a b-tree may name one child again and again: a walk over it need not end."""
        circle(edits_folder, "tensors")
        assert "structure" in check.problems(edits_folder)[0]
        ledger = reopened(edits_folder).ledger
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
    def test_entries_that_make_no_sense(self, edits_folder, body) -> None:
        """Even with a right checksum."""
        from corrigenda.editing.store.entries import next_chain

        with contextlib.closing(sqlite3.connect(edits_folder / "ledger.sqlite")) as connection:
            seq, chain = connection.execute("SELECT seq, chain FROM entries ORDER BY seq DESC").fetchone()
            row = (seq + 1, "status", body, next_chain(chain, seq + 1, "status", body))
            connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", row)
            connection.commit()
        with refusal("ledger.sqlite"):
            reopened(edits_folder)

    def test_a_ledger_cut_back_to_an_earlier_state(self, edits_folder, tmp_path) -> None:
        earlier = shutil.copytree(edits_folder, tmp_path / "earlier")
        store = reopened(edits_folder, write=True)
        add(store, edit("e"))
        store.close()
        shutil.copy(earlier / "ledger.sqlite", edits_folder / "ledger.sqlite")
        with refusal("head.json", "repair"):
            reopened(edits_folder)
        repair(edits_folder)
        assert [name for name, *_ in log_of(reopened(edits_folder))][-1] == "d2"


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
def test_a_mutated_folder_is_noticed_or_the_same(edits_folder, tmp_path, seed) -> None:
    """Never a wrong answer: `verify` says what is wrong, or everything reads as before."""
    store = reopened(edits_folder)
    wanted = log_of(store)
    tensors = {s.seq: record_of(store.ledger, s).tensors for s in store.history.edits.values()}
    store.close()
    chance = random.Random(seed)
    noticed = 0
    for number in range(30):
        copy = Path(shutil.copytree(edits_folder, tmp_path / f"copy-{number}"))
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

    def test_nothing_to_do(self, edits_folder) -> None:
        assert repair(edits_folder) == []

    def test_a_lost_head(self, edits_folder) -> None:
        (edits_folder / "head.json").unlink()
        assert "head.json is missing" in check.problems(edits_folder)[0]
        assert "anew" in repair(edits_folder)[0]
        assert not check.problems(edits_folder)

    def test_entries_from_the_damaged_one_on_are_lost(self, edits_folder) -> None:
        self.damage(edits_folder, b"What of d?")
        assert check.problems(edits_folder)
        with refusal("damaged", "repair"):
            reopened(edits_folder)
        done = repair(edits_folder)
        assert "ledger.sqlite.damaged" in done[0]
        assert [name for name, *_ in log_of(reopened(edits_folder))] == ["a", "b", "c"]
        assert not check.problems(edits_folder)

    def test_an_edit_whose_tensors_are_damaged_is_lost(self, edits_folder) -> None:
        store = reopened(edits_folder)
        stored = store.history.find("c")
        data = store.ledger.tensors(stored.seq, stored.body["tensors"])
        store.close()
        self.damage(edits_folder, data[-64:])
        done = repair(edits_folder)
        assert done[-1] == 'Edit "c" is lost: its tensors are damaged.'
        store = reopened(edits_folder, write=True)
        assert {name: status for name, *_, status in log_of(store)}["c"] == "lost"
        with refusal("no longer kept"):
            store.redo(store.selected(["c"]))
        store.close()
        assert not check.problems(edits_folder)

    def test_what_cannot_be_repaired(self, edits_folder) -> None:
        (edits_folder / "ledger.sqlite").write_bytes(b"SQLite format 3\0" + bytes(5000))
        head = (edits_folder / "head.json").read_bytes()
        with refusal("ledger.sqlite", "beyond repair", "restore it from a copy"):
            repair(edits_folder)
        assert (edits_folder / "head.json").read_bytes() == head and len(list(edits_folder.iterdir())) == 2
