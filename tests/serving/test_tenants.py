"""What a tenant's edits and folders are to others: unseen, not loaded, and taken out again without a trace."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading

import pytest
from served import OF_ACME, store
from tiny import tiny_tokenizer

from corrigenda.editing import CorrigendaError, Edit
from corrigenda.editing.store.store import EditStore
from corrigenda.serving import Catalogue, ServingError, ServingSettings, pinned
from corrigenda.serving.metrics import Metrics

pytestmark = pytest.mark.usefixtures("few_background_prompts")


@pytest.fixture
def root(folders, tmp_path):
    """A root of its own with the folders `shared`, `acme` and `more`."""
    for name in ("shared", "acme"):
        shutil.copytree(folders / name, tmp_path / name)
    shutil.copytree(folders / "acme", tmp_path / "more")
    return tmp_path


@pytest.fixture
def settings(root):
    return {"edits": root / "shared", "tenants": {"acme": root / "acme", "zeta": []}, "root": root}


def take(catalogue, change):
    catalogue.publish(change)
    return catalogue


WHOSE = r"""^The folder "[^"]+" is the tenant "acme"'s alone: name that tenant, or serve a copy\.$"""


@pytest.mark.parametrize("tenant", [None, "zeta", "new"])
def test_a_tenants_folder_is_nobody_elses(settings, root, tenant):
    """It was served to somebody, and so anybody could have it loaded: as shared, or as their own."""
    catalogue = Catalogue(tiny_tokenizer(), ServingSettings.parse(settings))
    for name in ("acme", str(root / "acme"), "./acme", "shared/../acme"):
        with pytest.raises(ServingError, match=WHOSE if tenant is None else "There is no folder") as refused:
            catalogue.allowed(name, tenant)
        assert refused.value.status == (403 if tenant is None else 404)
    assert catalogue.allowed("acme", "acme") == root / "acme"
    assert catalogue.allowed("more", tenant) == root / "more"
    take(catalogue, catalogue.read([("acme", root / "more")]))  # loaded meanwhile: theirs too
    take(catalogue, catalogue.unload("acme", root / "more"))
    take(catalogue, catalogue.forget("acme"))
    for name in ("acme", "more"):
        with pytest.raises(ServingError, match=WHOSE if tenant is None else "There is no folder"):
            catalogue.allowed(name, tenant)
    assert catalogue.allowed("more", "acme") == root / "more"
    assert catalogue.allowed("shared", tenant) == root / "shared"


def test_a_tenants_folder_is_known_by_its_name_where_none_can_be_loaded(settings, root):
    catalogue = Catalogue(tiny_tokenizer(), ServingSettings.parse({**settings, "root": None}))
    with pytest.raises(ServingError, match=WHOSE):
        catalogue.allowed("acme")
    with pytest.raises(ServingError, match="loads no further folders"):
        catalogue.allowed("acme", "zeta")
    assert catalogue.allowed("acme", "acme") == root / "acme"


def test_a_tenant_is_told_its_own_and_the_shared(settings, root):
    catalogue = Catalogue(tiny_tokenizer(), ServingSettings.parse(settings))
    acme, zeta, everything = (
        catalogue.listing("acme"),
        catalogue.listing("zeta"),
        catalogue.listing(None, everything=True),
    )
    assert [(edit["id"], edit["store"]) for edit in acme["edits"]] == [
        *(("a", "shared"), ("b", "shared"), ("c", "shared"), ("a", "acme"), ("e", "acme"))
    ]
    assert {edit["id"] for edit in zeta["edits"]} == {"a", "b", "c"} == {e["id"] for e in catalogue.listing()["edits"]}
    assert (acme["tenants"], zeta["tenants"], everything["tenants"]) == (["acme"], ["zeta"], ["acme", "zeta"])
    assert len(everything["edits"]) == 5
    told = json.dumps([acme, zeta, everything, catalogue.why("Who leads Vantrello Foods?", "acme")])
    assert str(root) not in told
    with pytest.raises(ServingError, match="no tenant"):
        catalogue.listing("other")
    sentence = f"The edits in {root}/more/ledger.sqlite are not those of {root / 'acme'}, under {root}."
    assert catalogue.without_paths(sentence) == "The edits in more/ledger.sqlite are not those of acme, under the root."


def test_folders_outside_of_a_root_are_called_by_their_last_part(folders, tmp_path):
    twin = tmp_path / "elsewhere" / "acme"
    shutil.copytree(folders / "acme", twin)
    tenants = {"acme": [folders / "acme", twin]}
    catalogue = Catalogue(tiny_tokenizer(), ServingSettings.parse({"edits": folders / "shared", "tenants": tenants}))
    assert catalogue.allowed("shared", "acme") == folders / "shared" == catalogue.allowed("shared")
    assert catalogue.allowed(str(twin), "acme") == twin
    with pytest.raises(ServingError, match="cannot be told apart"):
        catalogue.allowed("acme", "acme")
    with pytest.raises(ServingError, match=WHOSE):
        catalogue.allowed("acme")
    shutil.copytree(folders / "shared", tmp_path / "root" / "acme")  # a name under the root comes first
    settings = {"edits": folders / "shared", "tenants": tenants, "root": tmp_path / "root"}
    assert Catalogue(tiny_tokenizer(), ServingSettings.parse(settings)).allowed("acme") == tmp_path / "root" / "acme"


def test_there_are_as_many_tenants_and_folders_as_the_settings_allow(settings, root):
    """60 made-up tenants made every change seven times slower, and nothing took them out."""
    limits = {**settings, "most_tenants": 3, "most_folders": 4}
    catalogue = Catalogue(tiny_tokenizer(), ServingSettings.parse(limits))
    take(catalogue, catalogue.read([("new", root / "more")]))
    with pytest.raises(ServingError, match="at most 3 tenants") as refused:
        catalogue.read([("fourth", root / "more")])
    assert refused.value.status == 507
    take(catalogue, catalogue.read([("new", root / "more")]))  # again is not another one
    take(catalogue, catalogue.read([("new", root / "shared")]))
    with pytest.raises(ServingError, match="at most 4 folders"):
        catalogue.read([(None, root / "more")])
    take(catalogue, catalogue.forget("new"))
    assert catalogue.tenants() == ["acme", "zeta"] and len(catalogue.folders()) == 2
    take(catalogue, catalogue.read([("fourth", root / "shared")]))
    assert catalogue.tenants() == ["acme", "zeta", "fourth"]


def test_what_is_staged_counts_as_what_is_served(settings, root):
    """Or whoever may change edits could have any number of folders held, none of which is ever served."""
    waiting = store(root / "waiting", [Edit("Who keeps the Ulmen bridge?", "Jon Ravn", id="w")])
    extra = store(root / "extra", [Edit("Where is the Ulmen bridge?", "In Ostrova", id="x")])
    limits = ServingSettings.parse({**settings, "most_tenants": 3, "most_folders": 3, "capacity": 6})
    catalogue = Catalogue(tiny_tokenizer(), limits)
    opened = EditStore.open(waiting)
    opened.close()
    catalogue.stage(catalogue.read([("new", waiting)], snapshot=opened.snapshot))
    for tenant, words in (("fourth", "at most 3 tenants"), ("acme", "at most 3 folders")):
        with pytest.raises(ServingError, match=words):
            catalogue.read([(tenant, extra)])
    catalogue.settings = dataclasses.replace(limits, most_folders=9)
    with pytest.raises(ServingError, match="no room for 7 edits"):
        catalogue.read([("acme", extra)])
    catalogue.drop_staged("new", waiting)
    catalogue.settings = limits
    assert len(catalogue.read([("acme", extra)]).added) == 1


def test_a_capacity_holds_on_every_device(settings, root):
    catalogue = Catalogue(tiny_tokenizer(), ServingSettings.parse({**settings, "capacity": 5}))
    extra = store(root / "extra", [Edit("Where is the Ulmen bridge?", "In Ostrova", id="x")])
    with pytest.raises(ServingError, match="a capacity of 5") as refused:
        catalogue.read([(None, extra)])
    assert refused.value.status == 507 and len(catalogue.keys()) == 5


def test_a_folder_and_a_tenant_are_taken_out(settings, root):
    catalogue = Catalogue(tiny_tokenizer(), ServingSettings.parse(settings))
    tokens = catalogue.prompts.encode(catalogue.prompts.wrap("Who leads Vantrello Foods?"))
    assert catalogue.admit(tokens, "acme").edit.id == "e"
    change = catalogue.unload("acme", root / "acme")
    assert [edit.id for edit in change.removed] == ["a", "e"] and catalogue.admit(tokens, "acme").edit is not None
    take(catalogue, change)
    assert catalogue.admit(tokens, "acme").edit is None and len(catalogue.keys()) == 3
    assert root / "acme" not in catalogue._reader.open._held
    for tenant, path in (("acme", root / "acme"), (None, root / "acme"), ("zeta", root / "shared")):
        with pytest.raises(ServingError, match="is not served") as refused:
            catalogue.unload(tenant, path)
        assert refused.value.status == 404
    take(catalogue, catalogue.forget("acme"))
    with pytest.raises(ServingError, match="no tenant"):
        catalogue.admit(tokens, "acme")
    with pytest.raises(ServingError, match="no tenant"):
        catalogue.forget("acme")
    take(catalogue, catalogue.unload(None, root / "shared"))
    assert not catalogue.keys() and catalogue.admit(tokens).edit is None
    take(catalogue, catalogue.read([(None, root / "shared")]))
    assert len(catalogue.keys()) == 3


def test_a_served_model_takes_them_out_too(settings, root, serve):
    served = serve(settings)
    assert len(served.memory) == 5
    assert served.unload(root / "acme", "acme") == {"version": 2, "added": [], "removed": ["a", "e"]}
    assert len(served.memory) == 3 and served.forget("acme")["version"] == 3
    with pytest.raises(ServingError, match="no tenant"):
        served.served("acme")
    assert served.load(root / "acme", "acme")["added"] == ["a", "e"] and len(served.memory) == 5


def test_numbers_of_tenants_go_with_them(settings, root):
    prometheus = pytest.importorskip("prometheus_client")
    registry = prometheus.CollectorRegistry()
    metrics, catalogue = Metrics(registry), Catalogue(tiny_tokenizer(), ServingSettings.parse(settings))

    def labels():
        families = registry.collect()
        return {sample.labels["tenant"] for f in families for sample in f.samples if "tenant" in sample.labels}

    metrics.changed(catalogue, 5, 0)
    for tenant in ("acme", None):
        metrics.admitted(catalogue.admit([5, 6, 7], tenant))
    assert labels() == {"", "acme", "zeta"}
    for number in range(20):
        take(catalogue, catalogue.read([(f"t{number}", root / "shared")]))
        metrics.changed(catalogue, 0, 0)
        metrics.admitted(catalogue.admit([5, 6, 7], f"t{number}"))
        take(catalogue, catalogue.forget(f"t{number}"))
        metrics.changed(catalogue, 0, 0)
    take(catalogue, catalogue.forget("acme"))
    metrics.changed(catalogue, 0, 2)
    assert labels() == {"", "zeta"}


def test_a_folder_that_is_exchanged_for_a_link_is_not_opened(settings, root, tmp_path_factory, monkeypatch):
    """Between the check of its path and the opening: the thirteenth of such requests was answered from outside."""
    outside = store(tmp_path_factory.mktemp("outside") / "secret", OF_ACME)
    catalogue = Catalogue(tiny_tokenizer(), ServingSettings.parse(settings))
    path = catalogue.allowed("more")
    (root / "more").rename(root / "aside")
    (root / "more").symlink_to(outside)
    with pytest.raises(ServingError, match="exchanged") as refused:
        catalogue.read([(None, path)])
    assert refused.value.status == 409
    (root / "more").unlink()
    (root / "aside").rename(root / "more")
    # In the moment between that look and the opening itself:
    original = pinned.EditStore.open

    def exchanged(where, **options):
        (root / "more").rename(root / "aside")
        (root / "more").symlink_to(outside)
        try:
            return original(where, **options)
        finally:
            (root / "more").unlink()
            (root / "aside").rename(root / "more")

    monkeypatch.setattr(pinned.EditStore, "open", exchanged)
    with pytest.raises(ServingError, match="exchanged"):
        catalogue.read([(None, path)])
    monkeypatch.undo()
    assert catalogue.read([(None, path)]).stores[None, path]


def test_an_undo_writes_into_no_folder_but_the_one_that_was_named(settings, root, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret"
    shutil.copytree(root / "acme", outside)
    catalogue = Catalogue(tiny_tokenizer(), ServingSettings.parse(settings))
    (root / "acme").rename(root / "aside")
    (root / "acme").symlink_to(outside)
    with pytest.raises(ServingError, match="exchanged"):
        catalogue.undo("e", "acme")
    opened = EditStore.open(outside)
    assert len(opened.history.applied()) == len(OF_ACME)
    opened.close()


def test_many_exchanges_at_once(settings, root, tmp_path_factory):
    """What was found by trying: links that come and go while the folder is loaded."""
    outside = store(tmp_path_factory.mktemp("outside") / "secret", OF_ACME)
    catalogue, done = Catalogue(tiny_tokenizer(), ServingSettings.parse(settings)), threading.Event()
    path = catalogue.allowed("more")
    identity = (root / "more").stat().st_ino

    def exchange():
        while not done.is_set():
            (root / "more").rename(root / "aside")
            (root / "more").symlink_to(outside)
            (root / "more").unlink()
            (root / "aside").rename(root / "more")

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        for _ in range(60):
            try:
                opened = pinned.opened(path)
            except CorrigendaError:
                continue
            assert opened.ledger.folder.identity().st_ino == identity
            opened.close()
    finally:
        done.set()
        thread.join()
