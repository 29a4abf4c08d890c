"""Snapshots in a server: read as of one, staged beside what is served, fixed until another is named."""

from __future__ import annotations

import shutil

import pytest
from served import SHARED, Served

from corrigenda.editing.store.folder import Folder
from corrigenda.editing.store.snapshots import Snapshot, write_active
from corrigenda.editing.store.store import EditStore
from corrigenda.serving import ServingError, ServingSettings

pytestmark = pytest.mark.usefixtures("few_background_prompts")

CAPITAL, MUSEUM = SHARED[0].prompt, SHARED[1].prompt


@pytest.fixture
def folder(folders, tmp_path):
    return shutil.copytree(folders / "shared", tmp_path / "edits")


def snapshot_of(folder) -> Snapshot:
    store = EditStore.open(folder)
    store.close()
    return store.snapshot


def changed(folder, what, *ids) -> Snapshot:
    """Undo or redo edits in the folder; the snapshot that this makes."""
    store = EditStore.open(folder, write=True)
    getattr(store, what)(store.selected(ids))
    store.close()
    return store.snapshot


def answered(served, prompt):
    admission = served.catalogue.admit(served.ids(prompt))
    assert admission.key is None or served.memory.place(admission.key) >= 0
    return admission.edit and admission.edit.id


def with_one_staged(folder):
    """A server of the folder with its first edit undone, and a staged change that puts it in again, rows and all."""
    before = snapshot_of(folder)
    changed(folder, "undo", "a")
    served = Served(folder)
    change = served.catalogue.read([(None, folder)], snapshot=before)
    served.catalogue.stage(change)
    served.take(change, publish=False)
    return served, change, before


def test_a_store_is_served_as_of_a_snapshot(folder):
    before = snapshot_of(folder)
    after = changed(folder, "undo", "a")
    served = Served(folder)
    assert answered(served, CAPITAL) is None
    served.take(served.catalogue.read([(None, folder)], snapshot=before))
    assert answered(served, CAPITAL) == "a"
    assert served.catalogue.admit(served.ids(MUSEUM)).snapshot == str(before)
    served.take(served.catalogue.read([(None, folder)], snapshot=after))
    assert answered(served, CAPITAL) is None and answered(served, MUSEUM) == "b"
    assert served.catalogue.admit(served.ids(MUSEUM)).snapshot == str(after)


def test_what_is_staged_changes_no_answer_and_keeps_its_rows(folder):
    served, change, before = with_one_staged(folder)
    assert answered(served, CAPITAL) is None
    (key,) = (edit.key for edit in change.added)
    served.take(served.catalogue.read([(None, folder)]))  # another change goes by; what was staged of it is gone
    assert served.memory.place(key) == -1
    served.catalogue.stage(change)
    served.take(change, publish=False)
    assert served.memory.place(key) >= 0
    served.take(served.catalogue.read([(None, folder)], snapshot=before))
    assert answered(served, CAPITAL) == "a"


def test_what_was_staged_can_be_let_go(folder):
    served, change, _ = with_one_staged(folder)
    served.catalogue.drop_staged(None, folder)
    served.memory.keep(served.catalogue.keys(), served.slots.places())
    assert served.memory.place(change.added[0].key) == -1 and answered(served, CAPITAL) is None


def test_a_server_starts_with_the_snapshot_that_its_folder_names(folder):
    before = snapshot_of(folder)
    changed(folder, "undo", "a")
    with Folder(folder) as held:
        write_active(held, before)
    served = Served(folder)
    assert answered(served, CAPITAL) == "a"
    (told,) = served.catalogue.listing()["stores"]
    assert told == {"store": "edits", "tenant": None, "snapshot": str(before), "fixed": True}
    served.take(served.catalogue.read([(None, folder)]))  # a load goes by the folder as well
    assert answered(served, CAPITAL) == "a"


def test_one_server_does_not_go_its_own_way(folder):
    with Folder(folder) as held:
        write_active(held, snapshot_of(folder))
    served = Served(folder)
    for what, name in (("undo", "a"), ("redo", "a")):
        if what == "redo":
            changed(folder, "undo", "a")
            served.take(served.catalogue.read([(None, folder)], snapshot=snapshot_of(folder)))
        with pytest.raises(ServingError, match=f"{what} the edit with `corrigenda {what}`, and roll out") as refused:
            getattr(served.catalogue, what)(name, None)
        assert refused.value.status == 409


def test_a_snapshot_that_is_not_there_is_refused_and_nothing_changes(folder):
    served = Served(folder)
    version = served.catalogue.version
    with pytest.raises(ServingError, match="holds no snapshot 9-0123456789abcdef"):
        served.catalogue.read([(None, folder)], snapshot=Snapshot(9, "0123456789abcdef"))
    assert served.catalogue.version == version and answered(served, CAPITAL) == "a"


def test_several_stores_have_one_name(folders, folder):
    settings = ServingSettings.parse({"edits": folder, "tenants": {"acme": folders / "acme"}})
    catalogue = Served(settings).catalogue
    names = {tenant: catalogue._now[tenant].snapshot for tenant in (None, "acme")}
    assert names[None] == str(snapshot_of(folder)) and names["acme"].startswith("2-stores-")
    again = Served(settings).catalogue
    assert {tenant: again._now[tenant].snapshot for tenant in (None, "acme")} == names


def test_a_served_model_turns_between_two_passes(folder, serve):
    before = snapshot_of(folder)
    after = changed(folder, "undo", "a")
    served = serve(folder)
    assert served.stage(folder, before) == {"version": 1, "added": ["a"], "removed": []}
    assert served.catalogue.admit(_ids(served, CAPITAL)).edit is None
    assert served.load(folder, snapshot=before)["version"] == 2
    assert served.catalogue.admit(_ids(served, CAPITAL)).edit.id == "a"
    served.stage(folder, after)
    served.drop_staged(folder)
    assert served.catalogue.admit(_ids(served, CAPITAL)).snapshot == str(before)


def _ids(served, prompt):
    prompts = served.catalogue.prompts
    return prompts.encode(prompts.wrap(prompt))
