"""Signed folders: who signed is told from who can merely write the folder."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from forged import forge, forge_field
from served import SHARED, store
from stores import add, edit, refusal, reopened
from tiny import tiny_tokenizer
from typer.testing import CliRunner

from corrigenda.editing.cli import app
from corrigenda.editing.store import check
from corrigenda.editing.store.signing import check_signed, sign
from corrigenda.serving import Catalogue, ServingSettings
from corrigenda.serving.errors import ServingError

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="signatures need ssh-keygen")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ann", "bob"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"{name} * namespaces", "-f", folder / name]
        subprocess.run(command, check=True)
    return folder


def run(*arguments):
    return CliRunner().invoke(app, [str(word) for word in arguments])


def test_a_signed_folder_is_told_from_another(edits_folder, keys) -> None:
    assert "is not signed: `corrigenda sign` does that" in run("verify", edits_folder, "--key", keys / "ann.pub").stderr
    assert run("sign", edits_folder, "--key", keys / "ann").exit_code == 0
    assert run("verify", edits_folder, "--key", keys / "ann.pub").exit_code == 0
    both = keys / "both"
    both.write_text("# who may\n" + (keys / "bob.pub").read_text() + "\n" + (keys / "ann.pub").read_text())
    assert run("verify", edits_folder, "--key", both).exit_code == 0
    done = run("verify", edits_folder, "--key", keys / "bob.pub", "--json")
    assert done.exit_code and "is not signed by a key of" in json.loads(done.stdout)["problems"][0]


@pytest.mark.parametrize("how", ["undo", "rewritten", "cut back", "another's"])
def test_what_came_since_is_not_signed(edits_folder, tmp_path, keys, how) -> None:
    signed = reopened(edits_folder, write=True)
    sign(signed, keys / "ann")
    signed.close()
    if how == "undo":
        changed = reopened(edits_folder, write=True)
        changed.undo(changed.selected(["a"]))
        changed.close()
    elif how == "rewritten":
        forge_field(edits_folder, "edit", "edit.target", "Mallory")
    elif how == "cut back":
        forge(edits_folder, lambda entries: entries[:-1])
    else:
        other = shutil.copytree(edits_folder, tmp_path / "other")
        changed = reopened(other, write=True)
        add(changed, edit("e"))
        sign(changed, keys / "ann")
        changed.close()
        shutil.copy(other / "signature.json", edits_folder)
    assert check.problems(edits_folder) == []
    with refusal("signature is of"):
        check_signed(reopened(edits_folder), keys / "ann.pub")


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"entries": 1}', b"[" * 9000, b'{"entries":9,"chain":"","signature":"\xc3\xa9"}']
)
def test_a_signature_that_is_none(edits_folder, keys, body) -> None:
    (edits_folder / "signature.json").write_bytes(body)
    with refusal("signature.json", "damaged"):
        check_signed(reopened(edits_folder), keys / "ann.pub")


def test_a_signature_is_not_read_or_written_through_a_link(edits_folder, tmp_path, keys) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (edits_folder / "signature.json").symlink_to(victim)
    with refusal("signature.json"):
        check_signed(reopened(edits_folder), keys / "ann.pub")
    assert run("sign", edits_folder, "--key", keys / "ann").exit_code == 0
    assert victim.read_text() == "mine" and run("verify", edits_folder, "--key", keys / "ann.pub").exit_code == 0


def test_keys_that_are_none(edits_folder, tmp_path, keys) -> None:
    assert "could not be signed" in run("sign", edits_folder, "--key", tmp_path / "nothing").stderr
    signed = reopened(edits_folder, write=True)
    sign(signed, keys / "ann")
    for text in ("", "# nobody\n", "word\n"):
        (tmp_path / "keys").write_text(text)
        with refusal("holds no public keys"):
            check_signed(signed, tmp_path / "keys")
    with refusal("cannot be read"):
        check_signed(signed, tmp_path / "none")
    signed.close()


@pytest.mark.usefixtures("few_background_prompts")
def test_a_server_of_signed_folders_alone(tmp_path, keys) -> None:
    shared = store(tmp_path / "shared", SHARED)
    settings = ServingSettings.parse({"edits": shared, "signed_by": keys / "ann.pub"})
    with pytest.raises(ServingError, match="is not signed"):
        Catalogue(tiny_tokenizer(), settings)
    assert run("sign", shared, "--key", keys / "ann").exit_code == 0
    catalogue = Catalogue(tiny_tokenizer(), settings)
    with pytest.raises(ServingError, match="does not change stores"):
        catalogue.undo(SHARED[0].id, None)
    assert run("undo", shared, SHARED[0].id).exit_code == 0
    with pytest.raises(ServingError, match="signature is of"):
        catalogue.read([(None, shared)])
    assert run("sign", shared, "--key", keys / "ann").exit_code == 0
    assert len(catalogue.read([(None, shared)]).removed) == 1
