"""Snapshots: a name for each state of a ledger, and the store as it was then."""

from __future__ import annotations

import pytest
from stores import add, edit, log_of, refusal, reopened
from typer.testing import CliRunner

from corrigenda.editing.cli import app
from corrigenda.editing.errors import CorrigendaError
from corrigenda.editing.store import check
from corrigenda.editing.store.folder import Folder
from corrigenda.editing.store.snapshots import ACTIVE_NAME, Snapshot, read_active, write_active
from corrigenda.editing.store.store import EditStore, compact


def test_a_store_is_as_it_was_at_each_snapshot(edits_folder):
    store = reopened(edits_folder, write=True)
    states = {store.snapshot: log_of(store)}
    add(store, edit("e"))
    states[store.snapshot] = log_of(store)
    store.undo(store.selected(["a", "e"]))
    states[store.snapshot] = log_of(store)
    store.redo(store.selected(["a"]))
    states[store.snapshot] = log_of(store)
    store.close()
    assert len(states) == 4
    for snapshot, wanted in states.items():
        found = EditStore.at(edits_folder, Snapshot.parse(str(snapshot)))
        assert log_of(found) == wanted and found.snapshot == snapshot
        assert not found.refresh() and log_of(found) == wanted
        found.close()


def test_a_reader_at_a_snapshot_stays_there_while_others_write(edits_folder):
    writer = reopened(edits_folder, write=True)
    reader = EditStore.at(edits_folder, writer.snapshot)
    before = log_of(reader)
    add(writer, edit("e"))
    assert not reader.refresh() and log_of(reader) == before
    with refusal("open for reading alone"):
        reader.undo(reader.selected(["a"]))
    reader.close()
    writer.close()


def test_a_snapshot_is_of_one_ledger_and_its_copies(edits_folder, tmp_path):
    store = reopened(edits_folder)
    copy = store.copy(tmp_path / "copy")
    assert copy.snapshot == store.snapshot  # the same entries
    add(copy, edit("e"))
    with refusal("holds no snapshot"):
        EditStore.at(edits_folder, copy.snapshot)


def test_an_edit_that_was_forgotten_since_is_missed(edits_folder):
    store = reopened(edits_folder, write=True)
    snapshot = store.snapshot
    store.undo(store.selected(["a"]))
    compact(store, forget_undone=True)
    store.close()
    found = EditStore.at(edits_folder, snapshot)
    stored = found.history.find("a")
    with refusal("missing or cut"):
        found.ledger.tensors(stored.seq, stored.body["tensors"])


@pytest.mark.parametrize("name", ["", "5", "5-", "0-0123456789abcdef", "5-0123456789ABCDEF", "5-0123456789abcdef0"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(CorrigendaError, match="is no name of a snapshot"):
        Snapshot.parse(name)


def test_a_folder_says_which_one_to_serve(edits_folder):
    snapshot = reopened(edits_folder).snapshot
    with Folder(edits_folder) as folder:
        assert read_active(folder) is None
        write_active(folder, snapshot)
        assert read_active(folder) == snapshot
    assert not check.problems(edits_folder)


@pytest.mark.parametrize("said", [b"", b"{}", b"[]", b'{"snapshot": 3}', b'{"snapshot": "x"}', b"[" * 9000, b"\xff"])
def test_a_folder_that_names_none_is_refused(edits_folder, said):
    (edits_folder / ACTIVE_NAME).write_bytes(said)
    with Folder(edits_folder) as folder, refusal("names no snapshot to serve"):
        read_active(folder)


def test_a_link_in_its_place_is_not_followed(edits_folder, tmp_path):
    (tmp_path / "elsewhere").write_text('{"snapshot": "5-0123456789abcdef"}')
    (edits_folder / ACTIVE_NAME).symlink_to(tmp_path / "elsewhere")
    with Folder(edits_folder) as folder:
        with refusal("not a plain file"):
            read_active(folder)
        write_active(folder, Snapshot(5, "0123456789abcdef"))
    assert (tmp_path / "elsewhere").read_text() == '{"snapshot": "5-0123456789abcdef"}'
    assert not (edits_folder / ACTIVE_NAME).is_symlink()


def test_the_command_line_names_it(edits_folder):
    said = CliRunner().invoke(app, ["snapshot", str(edits_folder)])
    assert said.exit_code == 0 and Snapshot.parse(said.output.strip()) == reopened(edits_folder).snapshot
