"""Faults of the machine: a full disk, a kill at any step of a repair, few descriptors, little memory, a fork."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from pathlib import Path

import pytest
from stores import add, edit, log_of, refusal, reopened
from typer.testing import CliRunner

from corrigenda.editing.cli import app
from corrigenda.editing.errors import CorrigendaError
from corrigenda.editing.store import check
from corrigenda.editing.store.codec import record_of
from corrigenda.editing.store.repair import repair

STEPS = 12 * int(os.environ.get("CORRIGENDA_SOAK", "1"))
LEDGER = "ledger.sqlite"


def told(writing, work, arguments) -> None:
    try:
        work(*arguments)
    except BaseException:
        writing.send(traceback.format_exc())  # where there is no room, nothing that is printed arrives
        raise


def in_child(work, *arguments, wait: float = 60, start: str = "fork") -> int:
    """Run `work` in a process of its own; how that ended, 0 where it ended well."""
    context = multiprocessing.get_context(start)
    reading, writing = context.Pipe(duplex=False)
    process = context.Process(target=told, args=(writing, work, arguments))
    process.start()
    process.join(wait)
    try:
        assert not process.is_alive(), "it still runs"
        assert not reading.poll(), reading.recv()
        return process.exitcode
    finally:
        process.kill()
        process.join()


def read_in_little_memory(folder: Path, number: int) -> None:
    """Be refused an edit of 64 MB where there are 40, and go on."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + (40 << 20), pages + (40 << 20)))
    store = reopened(folder)
    with refusal(LEDGER):
        record_of(store.ledger, store.history.edits[number])
    assert len(log_of(store)) == 6


def snapshot(folder: Path) -> dict[str, bytes]:
    """What a folder holds; what SQLite has beside an open ledger aside."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.endswith(("-shm", "-wal")))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def no_room(most: int = 0) -> None:
    """From now on no file of this process grows beyond `most` bytes, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


@pytest.fixture
def with_log(edits_folder):
    """A folder whose last edit is in the write-ahead log alone, as a kill or a power cut leaves it."""

    def write() -> None:
        store = reopened(edits_folder, write=True)
        add(store, edit("e"))
        os._exit(0)

    in_child(write)
    assert (edits_folder / f"{LEDGER}-wal").stat().st_size
    (edits_folder / f"{LEDGER}-shm").unlink()
    return edits_folder


class TestFullDisk:
    @pytest.mark.parametrize("which", ["edits_folder", "with_log"])
    def test_a_whole_folder_is_read(self, request, which) -> None:
        folder = request.getfixturevalue(which)
        wanted = log_of(reopened(Path(shutil.copytree(folder, folder.with_name("copy")))))
        check.problems(folder)  # imports what it works with
        for suffix in ("-shm", *(["-wal"] if which == "edits_folder" else [])):
            (folder / f"{LEDGER}{suffix}").unlink(missing_ok=True)

        def read() -> None:
            no_room()
            store = reopened(folder)
            assert log_of(store) == wanted and "takes no more files" in store.ledger.notices[0]
            store.close()
            assert check.problems(folder) == [] and repair(folder) == []
            with refusal(LEDGER):
                reopened(folder, write=True)

        assert in_child(read) == 0

    def test_commands_say_what_is_wrong(self, edits_folder) -> None:
        def read() -> None:
            no_room()
            runner = CliRunner()
            assert "takes no more files" in runner.invoke(app, ["log", str(edits_folder)]).stderr
            done = runner.invoke(app, ["undo", str(edits_folder), "a"])
            assert done.exit_code == 2 and "full" in done.stderr, done.output

        assert in_child(read) == 0

    @pytest.mark.parametrize("most", [0, 100, 9000, 20_000])
    def test_repair_without_room_for_its_copy(self, edits_folder, most) -> None:
        data = (edits_folder / LEDGER).read_bytes()
        (edits_folder / LEDGER).write_bytes(data.replace(b"What of d?", b"What of #?"))
        check.problems(edits_folder)
        before = snapshot(edits_folder)

        def run() -> None:
            no_room(most)
            with refusal("edits"):
                repair(edits_folder)

        assert in_child(run) == 0
        assert snapshot(edits_folder) == before
        assert repair(edits_folder) and not check.problems(edits_folder)


def killed_at(number: int):
    """Have the process killed at the `number`th file that it opens, renames or removes."""
    left = [number]

    def count(event: str, _arguments: tuple) -> None:
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "sqlite3.connect"):
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)

    sys.addaudithook(count)


class TestKilledRepair:
    """However often it is killed, and wherever: what was lost is never hidden."""

    def cut_back(self, folder: Path) -> None:
        earlier = Path(shutil.copytree(folder, folder.with_name("earlier")))
        store = reopened(folder, write=True)
        add(store, edit("e"))
        store.close()
        shutil.copy(earlier / LEDGER, folder / LEDGER)

    def damaged(self, folder: Path) -> None:
        """In its middle, with the last edit in the log."""

        def write() -> None:
            store = reopened(folder, write=True)
            add(store, edit("e"))
            os._exit(0)

        store = reopened(folder, write=True)
        add(store, *(edit(f"x{number}") for number in range(30)))  # so that the log does not hold all pages
        store.close()
        data = (folder / LEDGER).read_bytes()
        in_child(write)
        (folder / LEDGER).write_bytes(data.replace(b"What of a?", b"What of #?"))

    @pytest.mark.parametrize("how", ["cut_back", "damaged"])
    def test_killed_at_any_step(self, edits_folder, tmp_path, how) -> None:
        getattr(self, how)(edits_folder)
        assert check.problems(edits_folder)
        ended = False
        for number in range(2, 400, max(1, 60 // STEPS)):
            copy = Path(shutil.copytree(edits_folder, tmp_path / f"killed-{number}"))

            def run(copy: Path = copy, number: int = number) -> None:
                killed_at(number)
                repair(copy)
                os._exit(0)

            ended = in_child(run) == 0
            with contextlib.suppress(CorrigendaError):
                store = reopened(copy)  # then it says what it lacks
                assert store.history.missing
                store.close()
            repair(copy)
            assert check.problems(copy) == []
            store = reopened(copy)
            (missing,) = store.history.missing
            assert missing["entries"] > missing["found"]
            store.close()
            shutil.rmtree(copy)
            if ended:
                break
        assert ended

    def test_verify_shows_what_is_missing(self, edits_folder) -> None:
        self.cut_back(edits_folder)
        repair(edits_folder)
        assert "what the others held is lost" in CliRunner().invoke(app, ["verify", str(edits_folder)]).output


class TestRollbackMode:
    """Another program has taken the ledger's write-ahead log away."""

    @pytest.fixture
    def rolled(self, edits_folder):
        with contextlib.closing(sqlite3.connect(edits_folder / LEDGER)) as connection:
            assert connection.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
        return edits_folder

    def test_it_is_turned_back(self, rolled) -> None:
        wanted = log_of(reopened(rolled))
        store = reopened(rolled, write=True)
        assert log_of(store) == wanted
        add(store, edit("e"))
        assert (rolled / f"{LEDGER}-wal").exists() and not (rolled / f"{LEDGER}-journal").exists()
        store.close()
        assert not check.problems(rolled)

    def test_killed_while_it_is_turned_back(self, edits_folder) -> None:
        """At any moment between the two modes the folder is this project's, and holds what it held."""
        store = reopened(edits_folder)
        wanted = log_of(store)
        store.close()  # or SQLite would not change the mode
        context = multiprocessing.get_context("fork")

        def turn(ready) -> None:
            while True:
                with contextlib.closing(sqlite3.connect(edits_folder / LEDGER)) as connection:
                    connection.execute("PRAGMA journal_mode = DELETE")
                reopened(edits_folder, write=True).close()
                ready.set()

        for number in range(STEPS):
            ready = context.Event()
            process = context.Process(target=turn, args=(ready,))
            process.start()
            ready.wait(60)
            time.sleep(0.003 * (number % 12))
            process.kill()
            process.join()
            for write in (False, True):
                store = reopened(edits_folder, write=write)
                assert log_of(store) == wanted
                store.close()
            assert not check.problems(edits_folder)

    @pytest.mark.parametrize("write", [False, True])
    def test_the_journal_of_a_kill_is_played_back(self, rolled, write) -> None:
        wanted = log_of(reopened(rolled))

        def cut() -> None:
            connection = sqlite3.connect(rolled / LEDGER, isolation_level=None)
            connection.execute("PRAGMA cache_size = 1")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("UPDATE entries SET kind = 'x'")
            for number in range(50):
                connection.execute("INSERT INTO tensors VALUES (?, zeroblob(9000))", (1000 + number,))
            os._exit(0)

        in_child(cut)
        assert (rolled / f"{LEDGER}-journal").stat().st_size
        store = reopened(rolled, write=write)
        assert log_of(store) == wanted
        store.close()
        assert not check.problems(rolled)

    @pytest.mark.parametrize("how", ["another file", "many pages", "another size"])
    def test_a_journal_that_does_more_is_refused(self, rolled, tmp_path, how) -> None:
        (size,) = sqlite3.connect(rolled / LEDGER).execute("PRAGMA page_size").fetchone()
        magic = bytes.fromhex("d9d505f920a163d7")
        pages = 1 << 30 if how == "many pages" else 2
        page = 8192 if how == "another size" else size
        header = magic + b"".join(n.to_bytes(4, "big") for n in (0, 1, pages, 512, page))
        name = str(tmp_path / "victim").encode()
        tail = name + len(name).to_bytes(4, "big") + sum(name).to_bytes(4, "big") + magic
        journal = header.ljust(512, b"\0") + (tail if how == "another file" else b"")
        (rolled / f"{LEDGER}-journal").write_bytes(journal)
        (tmp_path / "victim").write_text("mine")
        with refusal("was not written by this project"):
            reopened(rolled)
        assert (tmp_path / "victim").exists()


class TestOtherFaults:
    def test_a_stopped_writer_keeps_nobody_waiting(self, edits_folder) -> None:
        context = multiprocessing.get_context("fork")
        ready = context.Event()

        def hold() -> None:
            store = reopened(edits_folder, write=True)
            ready.set()
            time.sleep(60)
            store.close()

        process = context.Process(target=hold)
        process.start()
        assert ready.wait(30)
        os.kill(process.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            with refusal("Another process"):
                reopened(edits_folder, write=True)
            assert len(log_of(reopened(edits_folder))) == 5
            assert time.monotonic() - began < 30
        finally:
            process.kill()
            process.join()
        reopened(edits_folder, write=True).close()

    def test_a_child_that_was_forked_takes_nothing_from_its_parent(self, edits_folder) -> None:
        store = reopened(edits_folder, write=True)
        in_child(lambda: store.ledger.folder.close())

        def try_to_write() -> None:
            with refusal("Another process"):
                reopened(edits_folder, write=True)

        assert in_child(try_to_write) == 0
        add(store, edit("e"))
        store.close()
        assert in_child(lambda: reopened(edits_folder, write=True).close()) == 0
        assert not check.problems(edits_folder)

    def test_few_descriptors(self, edits_folder) -> None:
        check.problems(edits_folder)

        def run(most: int) -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            for work in (reopened, check.problems, repair, lambda at: reopened(at, write=True)):
                with contextlib.suppress(CorrigendaError):
                    work(edits_folder)

        for most in (4, 6, 8, 9, 10, 12, 14, 16, 32):
            assert in_child(run, most) == 0, most
        assert not check.problems(edits_folder)

    def test_little_memory(self, edits_folder) -> None:
        import torch

        store = reopened(edits_folder, write=True)
        stored = store.history.find("a")
        from corrigenda.editing.store.codec import packed
        from corrigenda.editing.store.ledger import New

        large = packed({"keys": torch.zeros(1 << 24), "values": torch.zeros(8)})
        body = {name: value for name, value in stored.body.items() if name != "tensors"}
        number = store.ledger.count + 1
        store.append([New("edit", {**body, "id": "large", "batch": number}, large)])
        store.close()

        if Path("/proc/self/statm").exists():
            # In a new process: one that other tests ran in gives back what they left, and has the room that is to lack.
            assert in_child(read_in_little_memory, edits_folder, number, start="spawn") == 0
