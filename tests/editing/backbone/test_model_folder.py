"""Models as folders that servers read: whole, whatever ended their writer, whoever else writes them."""

from __future__ import annotations

import os
import pwd
import resource
import threading
from types import SimpleNamespace

import pytest
from tiny import save_tiny, tiny_model

from corrigenda.editing import CorrigendaError, as_folder, load_base
from corrigenda.editing.backbone import loading, model_folder
from corrigenda.editing.backbone.loading import load_tokenizer, packaged_folder, packaged_model
from corrigenda.editing.backbone.model_folder import cache_folder, homeless, is_whole


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def writes(monkeypatch):
    """How often a model was written."""
    found, write = [], model_folder.write_folder
    monkeypatch.setattr(model_folder, "write_folder", lambda *given: (found.append(given), write(*given)))
    return found


def same_weights(folder) -> bool:
    loaded = load_base(folder)[0].state_dict()
    return all(tensor.equal(loaded[name]) for name, tensor in tiny_model().state_dict().items())


def test_it_is_written_once_and_whole(source, tmp_path, writes) -> None:
    for _ in range(2):
        assert as_folder(source, tmp_path / "a" / "model") == tmp_path / "a" / "model"
    assert len(writes) == 1 and is_whole(tmp_path / "a" / "model") and same_weights(tmp_path / "a" / "model")
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == [".model.lock", "model"]


PARTS = {"no weights": "model.safetensors", "no tokenizer": "tokenizer_config.json", "no configuration": "config.json"}


@pytest.mark.parametrize("what", ["cut", "longer", "no header", *PARTS, "empty"])
def test_what_a_killed_process_left_is_written_anew(source, tmp_path, writes, what) -> None:
    folder = as_folder(source, tmp_path / "model")
    weights = folder / "model.safetensors"
    if what in ("cut", "longer", "no header"):
        data = weights.read_bytes()
        weights.write_bytes({"cut": data[:-1], "longer": data + b"\0", "no header": data[:5]}[what])
    elif what == "empty":
        for file in folder.iterdir():
            file.unlink()
    else:
        (folder / PARTS[what]).unlink()
    assert not is_whole(folder)
    (tmp_path / ".model.partial-killed").mkdir()
    assert is_whole(as_folder(source, folder)) and len(writes) == 2 and same_weights(folder)
    assert not (tmp_path / ".model.partial-killed").exists()


def test_weights_for_which_there_is_no_room_leave_no_model(source, tmp_path) -> None:
    """Files may be no longer than the tokenizer's, so its own are written: safetensors has an error of its own."""
    room = max(file.stat().st_size for file in source.iterdir() if file.suffix == ".json")
    assert room < (source / "model.safetensors").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(CorrigendaError, match=r"cannot be written to .*model: .*File too large"):
            as_folder(source, tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not any((tmp_path / "model").iterdir()) and not list(tmp_path.glob(".model.partial-*"))


def test_an_end_in_the_middle_leaves_no_model(source, tmp_path, monkeypatch) -> None:
    def interrupted(file, place):
        if os.path.basename(place) == "config.json":
            raise KeyboardInterrupt
        replace(file, place)

    replace = os.replace
    monkeypatch.setattr(model_folder.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        as_folder(source, tmp_path / "model")
    assert not is_whole(tmp_path / "model") and not list(tmp_path.glob(".model.partial-*"))


def test_of_several_at_once_one_writes(source, tmp_path, writes) -> None:
    """Each opens the lock itself, as processes do."""
    threads = [threading.Thread(target=as_folder, args=(source, tmp_path / "model")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(writes) == 1 and is_whole(tmp_path / "model")


def test_a_place_that_takes_no_folder(source, tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CorrigendaError, match=r"cannot be written to .*file/model: Not a directory\.$"):
        as_folder(source, tmp_path / "file" / "model")


class TestWhere:
    @pytest.fixture
    def nobody(self, monkeypatch, tmp_path):
        """A user without a home in the environment or in the system's list."""
        for name in ("HOME", "XDG_CACHE_HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(pwd, "getpwuid", lambda number: {}[number])
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        return tmp_path / f"corrigenda-{os.getuid()}"

    @pytest.mark.parametrize("named", ["", "relative", None])
    def test_in_the_users_cache(self, monkeypatch, tmp_path, named) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "named") if named is None else named)
        assert cache_folder() == tmp_path / ("named" if named is None else ".cache") / "corrigenda"
        assert homeless() == {} or "USER" in homeless()

    def test_without_a_home(self, nobody) -> None:
        assert cache_folder() == nobody and nobody.stat().st_mode & 0o777 == 0o700
        assert homeless() == {"HOME": str(nobody), "USER": f"user-{os.getuid()}"}

    def test_a_home_that_is_no_folder(self, nobody, monkeypatch, tmp_path) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("HOME", str(tmp_path / "file"))
        assert cache_folder() == nobody

    def test_a_folder_that_others_may_write_is_refused(self, nobody) -> None:
        nobody.mkdir()
        nobody.chmod(0o777)
        with pytest.raises(CorrigendaError, match="is not this user's alone: remove it"):
            cache_folder()
        nobody.rmdir()
        nobody.symlink_to(nobody.parent)
        with pytest.raises(CorrigendaError, match="is not this user's alone"):
            cache_folder()


@pytest.mark.model
@pytest.mark.slow
def test_the_packaged_model_is_unpacked_once_and_the_same(smollm2, tmp_path, monkeypatch, writes) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    loaded, tokenizer = load_base(packaged_model())
    for _ in range(2):
        unpacked, its = load_base("smollm2")
        weights = unpacked.state_dict()
        assert all(tensor.equal(weights[name]) for name, tensor in loaded.state_dict().items())
        assert its.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
        assert its.chat_template == tokenizer.chat_template and its.special_tokens_map == tokenizer.special_tokens_map
        assert unpacked.generation_config.to_dict() == loaded.generation_config.to_dict()
    assert len(writes) == 1 and is_whole(packaged_folder()) and packaged_folder().parent == tmp_path / "corrigenda"


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("what", ["no folder", "no room"])
def test_the_packaged_model_is_read_where_nothing_can_be_kept(smollm2, tmp_path, monkeypatch, writes, what) -> None:
    def refused():
        raise CorrigendaError("nothing can be kept")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if what == "no folder":
        monkeypatch.setattr(loading, "cache_folder", refused)
    else:
        monkeypatch.setattr(loading.shutil, "disk_usage", lambda folder: SimpleNamespace(free=200 << 20))
    assert load_tokenizer("smollm2")("a b")["input_ids"] == smollm2[1]("a b")["input_ids"] and not writes
