"""A roll-out over real servers: all turn or none, and one that was away turns when it comes back."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket

import pytest
from running import transformers_server
from served import SHARED
from tiny import save_tiny
from typer.testing import CliRunner

from corrigenda.editing.cli import app
from corrigenda.editing.errors import CorrigendaError
from corrigenda.editing.store.folder import Folder
from corrigenda.editing.store.rollout import Server, roll_out
from corrigenda.editing.store.snapshots import read_active
from corrigenda.editing.store.store import EditStore

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_background_prompts")]

CAPITAL = SHARED[0].prompt


@pytest.fixture(scope="module")
def folder(folders, tmp_path_factory):
    return shutil.copytree(folders / "shared", tmp_path_factory.mktemp("fleet") / "edits")


@pytest.fixture(scope="module")
def servers(folder, tmp_path_factory):
    model = tmp_path_factory.mktemp("model")
    save_tiny(model)
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(transformers_server(model, {"edits": folder})) for _ in range(2)]


@pytest.fixture
def snapshots(folder):
    """Two states of the folder: with the first edit, and without."""
    found = []
    for what in ("redo", "undo"):
        store = EditStore.open(folder, write=True)
        getattr(store, what)(store.selected(["a"]))
        found.append(store.snapshot)
        store.close()
    return found


def nobody() -> str:
    """An address where nothing listens."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"http://localhost:{free.getsockname()[1]}"


def told(server):
    """What a server's answer to the question says of itself: its edit, and its snapshot."""
    body = {"prompt": f"Question: {CAPITAL}\nAnswer:", "max_tokens": 2}
    headers = server.post("/v1/completions", json=body).headers
    return headers["x-corrigenda-edit"], headers["x-corrigenda-snapshot"]


def addresses(servers):
    return [Server(str(server.base_url)) for server in servers]


def test_all_turn_together(servers, folder, snapshots):
    with_it, without = snapshots
    for snapshot, edit in ((with_it, "a"), (without, "-"), (with_it, "a")):
        done = roll_out(folder, addresses(servers), snapshot)
        assert done.committed and not done.failed and len(done.turned) == 2
        assert [told(server) for server in servers] == [(edit, str(snapshot))] * 2
        with Folder(folder) as held:
            assert read_active(held) == snapshot


def test_none_turns_where_one_cannot_get_ready(servers, folder, snapshots):
    with_it, without = snapshots
    roll_out(folder, addresses(servers), with_it)
    away = nobody()
    done = roll_out(folder, [*addresses(servers), Server(away)], without)
    assert not done.committed and list(done.failed) == [away] and "did not answer" in done.failed[away]
    assert [told(server) for server in servers] == [("a", str(with_it))] * 2
    with Folder(folder) as held:
        assert read_active(held) == with_it


def test_one_that_dies_between_the_steps_is_named_and_turns_later(servers, folder, snapshots, monkeypatch):
    with_it, without = snapshots
    roll_out(folder, addresses(servers), with_it)
    ask, dead = Server.ask, str(servers[1].base_url)

    def dies(self, method, path, body=None):
        if self.address == dead and path == "/v1/edits":
            raise CorrigendaError(f"{self.address} did not answer: timed out.")
        return ask(self, method, path, body)

    monkeypatch.setattr(Server, "ask", dies)
    done = roll_out(folder, addresses(servers), without)
    assert done.committed and list(done.failed) == [dead]
    assert [told(server) for server in servers] == [("-", str(without)), ("a", str(with_it))]
    monkeypatch.undo()
    # Started anew, or told to read its folder, it goes by what that says; so does the same roll-out again.
    servers[1].post("/v1/edits", json={"store": str(folder)})
    assert told(servers[1]) == ("-", str(without))
    assert not roll_out(folder, addresses(servers), without).failed


def test_a_roll_out_that_ends_between_the_steps_is_finished_by_the_next(servers, folder, snapshots, monkeypatch):
    with_it, without = snapshots
    roll_out(folder, addresses(servers), with_it)
    ask = Server.ask

    def ends(self, method, path, body=None):
        if path == "/v1/edits":
            raise KeyboardInterrupt
        return ask(self, method, path, body)

    monkeypatch.setattr(Server, "ask", ends)
    with pytest.raises(KeyboardInterrupt):
        roll_out(folder, addresses(servers), without)
    assert [told(server) for server in servers] == [("a", str(with_it))] * 2
    monkeypatch.undo()
    done = roll_out(folder, addresses(servers), without)
    assert done.committed and [told(server) for server in servers] == [("-", str(without))] * 2


def test_the_command_line(servers, folder, snapshots):
    with_it, without = snapshots
    both = ",".join(str(server.base_url) for server in servers)
    done = CliRunner().invoke(app, ["rollout", str(folder), "--servers", both, "--snapshot", str(with_it), "--json"])
    assert done.exit_code == 0 and json.loads(done.output)["snapshot"] == str(with_it)
    done = CliRunner().invoke(app, ["rollout", str(folder), "--servers", f"{both},{nobody()}"])
    assert done.exit_code == 1 and "Nothing has changed: 1 server could not get ready." in done.output
    done = CliRunner().invoke(app, ["rollout", str(folder), "--servers", both])
    assert done.exit_code == 0 and f"All 2 servers answer by {without}." in done.output
    undone = servers[0].delete("/v1/edits/b")
    assert undone.status_code == 409 and "roll out what that makes" in undone.json()["error"]["message"]


@pytest.mark.parametrize(
    "given, words",
    [
        (["--servers", "localhost:8000"], "is no address of a server"),
        (["--servers", ","], "the address of at least one server"),
        (["--servers", "http://a,http://a"], "named twice"),
        (["--servers", "http://a", "--snapshot", "last"], "is no name of a snapshot"),
        (["--servers", "http://a", "--snapshot", "9-0123456789abcdef"], "holds no snapshot"),
    ],
)
def test_wrong_inputs_are_one_sentence(folder, given, words):
    said = CliRunner().invoke(app, ["rollout", str(folder), *given])
    assert said.exit_code == 2 and words in said.output and "Traceback" not in said.output


def test_a_folder_that_is_being_written_waits(folder):
    writing = EditStore.open(folder, write=True)
    with pytest.raises(CorrigendaError, match="Another process is writing"):
        roll_out(folder, [Server(nobody())])
    writing.close()
