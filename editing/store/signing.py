"""Signatures over a ledger's head: who signed can be told from who can merely write the folder.

What is signed is the number and the chain of the last entry, which stands for all before it and for their tensors.
OpenSSH makes and checks the signatures (`ssh-keygen -Y`, since 8.1), with the keys that people have.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ..errors import CorrigendaError
from .files import reason_of
from .folder import Folder
from .store import EditStore

SIGNATURE_NAME = "signature.json"
_NAMESPACE = "corrigenda"
_LARGEST = 1 << 16


def sign(store: EditStore, key: Path) -> int:
    """Sign a store as it is, by a private key (or the public one of a key that an agent holds); how many entries."""
    folder = store.ledger.folder
    if folder is None:
        raise CorrigendaError("Edits that are in no folder cannot be signed: save them first.")
    entries, chain = store.ledger.count, store.ledger.chain
    with tempfile.TemporaryDirectory() as private:
        message = Path(private, "message")
        message.write_bytes(_message(entries, chain))
        _run("sign", "-f", str(key), "-n", _NAMESPACE, str(message), what=f"{folder.path} could not be signed")
        signature = Path(private, "message.sig").read_text(encoding="ascii")
    found = {"entries": entries, "chain": chain.hex(), "signature": signature}
    try:
        folder.write(SIGNATURE_NAME, json.dumps(found, indent=2).encode() + b"\n")
    except OSError as error:
        raise CorrigendaError(f"{folder.path / SIGNATURE_NAME} cannot be written: {reason_of(error)}.") from error
    return entries


def check_signed(store: EditStore, key: Path) -> None:
    """Raise unless all entries of a store are signed by one of the public keys in a file, one a line, as in `*.pub`."""
    folder = store.ledger.folder
    if folder is None:
        raise CorrigendaError("Edits that are in no folder are not signed.")
    signed = _read(folder)
    entries, chain = store.ledger.count, store.ledger.chain
    if signed["entries"] != entries or signed["chain"] != chain.hex():
        raise CorrigendaError(
            f"{folder.path} has {entries} entries, and its signature is of {signed['entries']}, or of others: look at "
            "what came since, and sign it again."
        )
    with tempfile.TemporaryDirectory() as private:
        allowed, signature = Path(private, "allowed"), Path(private, "signature")
        allowed.write_text("".join(f'* namespaces="{_NAMESPACE}" {line}\n' for line in _public_keys(key)))
        signature.write_text(signed["signature"], encoding="ascii")
        arguments = ("-f", str(allowed), "-I", "anybody", "-n", _NAMESPACE, "-s", str(signature))
        sentence = f"{folder.path} is not signed by a key of {key}"
        _run("verify", *arguments, given=_message(entries, chain), what=sentence)


def _message(entries: int, chain: bytes) -> bytes:
    return f"corrigenda ledger\nentries {entries}\nchain {chain.hex()}\n".encode()


def _read(folder: Folder) -> dict[str, Any]:
    file = folder.path / SIGNATURE_NAME
    try:
        found = json.loads(folder.read(SIGNATURE_NAME, _LARGEST))
        if not isinstance(found["entries"], int) or not isinstance(found["chain"], str):
            raise ValueError("it does not say what is signed")
        if not isinstance(found["signature"], str) or not found["signature"].isascii():
            raise ValueError("it holds no signature")
    except FileNotFoundError:
        raise CorrigendaError(f"{folder.path} is not signed: `corrigenda sign` does that.") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorrigendaError(f"{file} is damaged ({reason_of(error)}): sign the folder again.") from None
    return found


def _public_keys(file: Path) -> list[str]:
    """The keys in a file, each its type and base64, without what may stand after them."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise CorrigendaError(f"The file of public keys {file} cannot be read: {reason_of(error)}.") from None
    keys = [" ".join(line.split()[:2]) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys or not all(len(key.split()) == 2 and key.split()[0].isprintable() for key in keys):
        raise CorrigendaError(f"{file} holds no public keys, one a line, as in the .pub files of `ssh-keygen`.")
    return keys


def _run(action: str, *arguments: str, what: str, given: bytes | None = None) -> None:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise CorrigendaError("Signatures need ssh-keygen, which is not here: install OpenSSH's client.")
    try:
        done = subprocess.run(
            [program, "-Y", action, *arguments],
            input=given,
            stdin=None if given is not None else subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CorrigendaError(f"{what}: {reason_of(error)}.") from None
    if done.returncode:
        said = (done.stderr + done.stdout).decode(errors="replace").strip().splitlines()
        raise CorrigendaError(f"{what}: {(said[-1] if said else 'ssh-keygen failed').rstrip('.')}.")
