"""A folder from elsewhere: nothing in it runs, leads out, keeps its reader waiting, or takes more than it is."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from forged import entries_of, files_around, forge, forge_field
from stores import add, edit, log_of, new_store, refusal, reopened
from typer.testing import CliRunner

from corrigenda.editing.cli import app
from corrigenda.editing.errors import CorrigendaError
from corrigenda.editing.store import check
from corrigenda.editing.store.ledger import Ledger
from corrigenda.editing.store.repair import repair
from corrigenda.editing.store.store import compact

LEDGER, HEAD = "ledger.sqlite", "head.json"


@pytest.fixture
def victim(tmp_path):
    """A file outside the folder that nothing may touch."""
    file = tmp_path / "victim"
    file.write_text("mine")
    yield file
    assert file.read_text() == "mine"


def within(seconds: float, work, *arguments) -> None:
    """Run `work` in a process of its own, which must end in time."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    process.join(seconds)
    try:
        assert not process.is_alive(), "it still runs"
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()


def undo_one(folder: Path) -> None:
    store = reopened(folder, write=True)
    store.undo(store.selected(["a"]))
    store.close()


class TestLinks:
    @pytest.mark.parametrize("name", [LEDGER, HEAD, f"{LEDGER}-wal", f"{LEDGER}-shm", f"{LEDGER}-journal"])
    @pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder"])
    def test_only_plain_files_are_opened(self, edits_folder, victim, name, kind) -> None:
        (edits_folder / name).unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(edits_folder / name)
        elif kind == "folder":
            (edits_folder / name).mkdir()
        else:
            (edits_folder / name).symlink_to(victim if kind == "link" else victim.with_name("nothing"))
        before = files_around(edits_folder)

        def all_refuse() -> None:
            for command in (reopened, undo_one, repair):
                with refusal(name):
                    command(edits_folder)
            assert check.problems(edits_folder)

        within(30, all_refuse)
        assert files_around(edits_folder) == before

    def test_the_staged_head_as_a_link_is_not_written_through(self, edits_folder, victim) -> None:
        (edits_folder / ".head.json").symlink_to(victim)
        undo_one(edits_folder)
        assert not (edits_folder / HEAD).is_symlink() and not check.problems(edits_folder)

    def test_the_staged_head_as_a_pipe_keeps_nobody_waiting(self, edits_folder) -> None:
        os.mkfifo(edits_folder / ".head.json")
        within(30, undo_one, edits_folder)
        assert not check.problems(edits_folder)

    def test_what_repair_keeps_aside_is_not_written_through_a_link(self, edits_folder, victim) -> None:
        for number, target in enumerate(("nothing", "victim")):
            (edits_folder / f"{LEDGER}.damaged{f'-{number}' if number else ''}").symlink_to(victim.with_name(target))
        damage(edits_folder)
        before = files_around(edits_folder)
        assert f"{LEDGER}.damaged-2" in repair(edits_folder)[0]
        assert files_around(edits_folder) == before

    def test_a_ledger_that_is_exchanged_for_a_link_while_it_is_opened(self, tmp_path) -> None:
        """What was checked is what is opened: another folder's edits are never read through this one."""
        for name in ("mine", "secret"):
            store = new_store(tmp_path / name)
            add(store, edit(name))
            store.close()
        mine, other, hidden = tmp_path / "mine" / LEDGER, tmp_path / "link", tmp_path / "secret" / LEDGER
        other.symlink_to(hidden)
        stop = threading.Event()

        def exchange() -> None:
            aside = tmp_path / "aside"
            while not stop.is_set():
                os.rename(mine, aside), os.rename(other, mine)
                os.rename(mine, other), os.rename(aside, mine)

        thread = threading.Thread(target=exchange)
        thread.start()
        try:
            for _ in range(300):
                with contextlib.suppress(CorrigendaError):
                    store = reopened(tmp_path / "mine")
                    found = [name for name, *_ in log_of(store)]
                    store.close()
                    assert found == ["mine"]
        finally:
            stop.set()
            thread.join()


def damage(folder: Path, what: bytes = b"What of d?") -> None:
    data = (folder / LEDGER).read_bytes()
    place = data.index(what)
    (folder / LEDGER).write_bytes(data[:place] + b"#" + data[place + 1 :])


class TestDatabase:
    def test_a_trigger_under_a_tables_name(self, edits_folder) -> None:
        """Who asks by name gets the last of equal ones."""
        with contextlib.closing(sqlite3.connect(edits_folder / LEDGER)) as connection:
            connection.execute("CREATE TRIGGER tensors AFTER INSERT ON entries BEGIN DELETE FROM tensors; END")
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute("UPDATE sqlite_master SET rowid = 9 WHERE type = 'table' AND name = 'tensors'")
            connection.commit()
        for write in (False, True):
            with refusal("other tables"):
                reopened(edits_folder, write=write)

    @pytest.mark.parametrize(
        "body", ["DELETE FROM tensors", "INSERT INTO entries SELECT seq + 100000, kind, body, chain FROM entries"]
    )
    def test_a_trigger_that_comes_while_it_is_open_does_not_run(self, edits_folder, body) -> None:
        store = reopened(edits_folder, write=True)
        count = len(store.ledger.owners())
        with contextlib.closing(sqlite3.connect(edits_folder / LEDGER)) as connection:
            connection.execute(f"CREATE TRIGGER t AFTER INSERT ON entries BEGIN {body}; END")
            connection.commit()
        # From Python 3.12 on a connection lets no trigger run; before, what a trigger would do is forbidden.
        off = hasattr(sqlite3.Connection, "setconfig")
        with contextlib.nullcontext() if off else refusal("cannot be written"):
            store.undo(store.selected(["a"]))
        assert len(store.ledger.owners()) == count
        assert len(list(store.ledger.entries(after=0))) == store.ledger.count
        store.close()

    def test_a_page_that_leads_in_a_circle_ends(self, edits_folder) -> None:
        from forged import circle

        circle(edits_folder, "entries")
        began = time.monotonic()
        with refusal("damaged"):
            reopened(edits_folder)
        with refusal("structure"):
            raise CorrigendaError(check.problems(edits_folder)[0])
        assert time.monotonic() - began < 60

    def test_a_statement_that_has_no_end_is_given_up(self, edits_folder) -> None:
        ledger = Ledger.open(edits_folder)
        endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
        with pytest.raises(sqlite3.DatabaseError):  # it is no statement of this project's
            ledger._connection.execute(endless)
        ledger._connection.set_authorizer(None)
        with refusal("cannot be read"):
            list(ledger._rows(endless))
        ledger.close()

    def test_other_statements_are_not_let_run(self, edits_folder) -> None:
        ledger = Ledger.open(edits_folder, write=True)
        for statement in (
            "ATTACH 'elsewhere' AS e",
            "CREATE TABLE more (x)",
            "DROP TABLE tensors",
            "SELECT load_extension('x')",
            "UPDATE entries SET kind = 'x'",
            "PRAGMA writable_schema = ON",
        ):
            with pytest.raises(sqlite3.DatabaseError):
                ledger._connection.execute(statement)
        ledger.close()

    @pytest.mark.parametrize("number", [0, -1, -(1 << 62)])
    def test_rows_before_the_first(self, edits_folder, number) -> None:
        with contextlib.closing(sqlite3.connect(edits_folder / LEDGER)) as connection:
            connection.execute("INSERT INTO entries VALUES (?, 'note', '{}', zeroblob(32))", (number,))
            connection.commit()
        with refusal("damaged"):
            reopened(edits_folder)
        assert check.problems(edits_folder)

    def test_entries_may_not_claim_more_tensors_than_there_are_bytes(self, edits_folder) -> None:
        forge_field(edits_folder, "edit", "tensors.bytes", 1 << 29)
        with refusal("more tensors"):
            reopened(edits_folder)


def taken_by(work) -> int:
    """How much memory `work` takes at most, in a process of its own that has imported all there is."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("this system does not say what a process takes")
    reading, writing = multiprocessing.get_context("fork").Pipe(duplex=False)

    def kilobytes(name: str) -> int:
        return int(re.search(rf"{name}:\s+(\d+)", status.read_text())[1])

    def run() -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the most is counted from here
        before = kilobytes("VmRSS")
        work()
        writing.send((kilobytes("VmHWM") - before) * 1024)

    within(60, run)
    return reading.recv()


class TestMemory:
    """In proportion to what is on the disk, whatever is in it."""

    @pytest.mark.parametrize("what", ["edits", "notes", "values", "events"])
    def test_what_commands_take(self, edits_folder, what) -> None:
        check.problems(edits_folder)  # imports what it works with
        entries = entries_of(edits_folder)
        body = next(body for kind, body in entries if kind == "edit")
        own = next(n for n, entry in enumerate(entries, 1) if entry[0] == "edit")
        stamp = {"time": body["time"], "author": "ann"}
        many = {**body, "batch": own, "edit": {**body["edit"], "metadata": {"x": [[]] * 20_000}}}
        count, made = {
            "edits": (4_000, lambda n: ("edit", {**body, "id": f"x{n}", "batch": own})),
            "notes": (40_000, lambda n: ("note", {})),
            "values": (24, lambda n: ("edit", many)),
            "events": (20_000, lambda n: ("status", {"status": "undone", "edits": [own], **stamp})),
        }[what]
        forge(edits_folder, lambda entries: entries + [made(n) for n in range(count)])
        size = (edits_folder / LEDGER).stat().st_size
        for command in (("log",), ("log", "--json"), ("verify",)):
            taken = taken_by(lambda command=command: CliRunner().invoke(app, [*command, str(edits_folder)]))
            assert taken < 4 * size + 20_000_000, (command, taken / 1e6, size / 1e6)


class TestValues:
    """Even with a right chain, `verify` refuses what the other commands cannot handle."""

    @pytest.mark.parametrize(
        ("kind", "path", "value"),
        [
            ("edit", "author", 7),
            ("status", "author", ["x"]),
            ("edit", "id", "\ud800"),
            ("edit", "edit.prompt", "\udfff"),
            ("edit", "time", "9"),
            ("status", "time", "tomorrow"),
            ("edit", "time", "2026-13-01T00:00:00.000000+00:00"),
            ("ground", "time", 3),
            ("store", "prompts.template", "no place for a prompt"),
            ("store", "prompts.template", "{prompt} {prompt}"),
            ("store", "config", {"method": ["x"]}),
            ("store", "base.widths", [0, -3]),
            ("edit", "numbers", {"alpha": "x"}),
            ("edit", "numbers", {"alpha": float("nan")}),
            ("edit", "numbers", {"alpha": 1e999}),
            ("edit", "tensors", {"sha256": 3, "bytes": True}),
            ("ground", "tensors", None),
            ("edit", "supersedes", [True]),
            ("edit", "fingerprint", "AAA="),
            ("status", "edits", [3, 3]),
            ("status", "note", {}),
        ],
    )
    def test_fields_that_are_none(self, edits_folder, kind, path, value) -> None:
        forge_field(edits_folder, kind, path, value)
        with refusal(LEDGER):
            reopened(edits_folder)
        assert check.problems(edits_folder)

    def test_a_time_that_is_still_to_come(self, edits_folder) -> None:
        forge_field(edits_folder, "status", "time", "9999-01-01T00:00:00.000000+00:00")
        assert "still to come" in check.problems(edits_folder)[0]

    @pytest.mark.parametrize("ids", [[3, 2], [5, 5], [-1, 4], [4, 1 << 25]])
    def test_fingerprints_that_no_router_makes(self, edits_folder, ids) -> None:
        import torch

        from corrigenda.editing.store.codec import fingerprint_text

        forge_field(edits_folder, "edit", "fingerprint", fingerprint_text(torch.tensor(ids, dtype=torch.int32)))
        assert "fingerprint" in check.problems(edits_folder)[0]

    def test_a_fingerprint_beyond_the_vocabulary(self, edits_folder) -> None:
        forge_field(edits_folder, "store", "base.vocabulary", 400)
        assert "fingerprint" in check.problems(edits_folder)[0]

    def test_an_entry_of_more_values_than_any(self, edits_folder) -> None:
        body = b'{"x": [' + b"[]," * (1 << 20) + b"[]]}"
        forge(edits_folder, lambda entries: [*entries, ("note", body)])
        with refusal("entry", "not a JSON object"):
            reopened(edits_folder)


class TestNames:
    """Ids and authors that no command, header or log could hold."""

    @pytest.mark.parametrize("name", ["a\nb", "a\0", "\x1b]0;x\x07", "\x9b1m", "a\u202eb", "a\u2028b", "x" * 257])
    def test_they_are_refused_when_written(self, edits_folder, name) -> None:
        store = reopened(edits_folder, write=True)
        before = log_of(store)
        with refusal("nothing was recorded"):
            add(store, edit(name))
        with refusal("author"):
            store.undo(store.selected(["a"]), author=name)
        assert log_of(store) == before
        store.close()

    def test_those_of_an_earlier_version_are_undone_as_they_are_shown(self, edits_folder) -> None:
        odd = "a\n\0\x1b\x9b\u202e"
        forge_field(edits_folder, "edit", "id", odd)
        assert not check.problems(edits_folder)
        store = reopened(edits_folder, write=True)
        with refusal("nobody"):
            store.selected(["nobody"])
        change = store.undo(store.selected([r"a\n\x00\x1b\x9b\u202e"]))
        assert [stored.id for stored in change.edits] == [odd]
        store.close()

    def test_merging_gives_them_another_name(self, edits_folder, tmp_path) -> None:
        from corrigenda.editing.store.exchange import merge

        forge_field(edits_folder, "edit", "id", "o\nd")
        forge_field(edits_folder, "edit", "author", "\x1b")
        into = new_store()
        done = merge(into, reopened(edits_folder))
        assert done.renamed == {"o\nd": r"o\nd"} and r"o\nd" in done.added
        assert into.history.find(r"o\nd").author == r"\x1b"


def test_a_new_store_leaves_its_folder_where_it_is(tmp_path) -> None:
    """Somebody may stand in it, or have mounted it."""
    folder = tmp_path / "here"
    folder.mkdir()
    before = folder.stat().st_ino
    new_store(folder).close()
    assert folder.stat().st_ino == before and sorted(os.listdir(folder)) == [HEAD, LEDGER]


def test_what_a_kill_left_of_a_new_store_is_no_edits(tmp_path) -> None:
    folder = tmp_path / "here"
    (folder / ".corrigenda-half").mkdir(parents=True)
    (folder / ".corrigenda-half" / LEDGER).touch()
    (folder / HEAD).write_text("{}")
    new_store(folder).close()
    assert sorted(os.listdir(folder)) == [HEAD, LEDGER] and not check.problems(folder)
    (folder / "more").touch()
    with refusal("not empty"):
        new_store(folder)


def test_a_compacted_folder_still_lets_nothing_run(edits_folder) -> None:
    store = reopened(edits_folder, write=True)
    compact(store, forget_undone=True)
    with pytest.raises(sqlite3.DatabaseError):
        store.ledger._connection.execute("DROP TABLE tensors")
    store.close()
