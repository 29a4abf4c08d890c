"""A packaged or GGUF model as a folder that servers read, written once, whatever ends a process that writes it."""

from __future__ import annotations

import contextlib
import copy
import getpass
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from ..errors import CorrigendaError


def write_once(name: str | Path, path: Path, load: Callable[[], tuple[Any, Any]]) -> Path:
    """`path` with safetensors and a tokenizer: those that `load` gives, written unless the folder is whole.

    It is written beside its place and moved there, by one process at a time: others wait, and find it whole. Raises
    CorrigendaError, which calls the model by its `name`, where it cannot be.
    """
    if is_whole(path):
        return path
    try:
        path.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            if not is_whole(path):
                loaded, tokenizer = load()
                write_folder(loaded, loaded.state_dict(), tokenizer, path)
    except (OSError, SafetensorError) as error:  # the second where the disk is full
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise CorrigendaError(f'The model "{name}" cannot be written to {path}: {reason}.') from error
    return path


def is_whole(path: Path) -> bool:
    """Whether a model folder has its configuration, a tokenizer, and every byte that its weights' headers promise."""
    if not all((path / name).is_file() for name in ("config.json", "tokenizer_config.json")):
        return False
    index = path / "model.safetensors.index.json"
    try:
        shards = (
            set(json.loads(index.read_bytes())["weight_map"].values()) if index.is_file() else {"model.safetensors"}
        )
        return all(_is_whole_shard(path / shard) for shard in shards)
    except (OSError, ValueError, KeyError, AttributeError, struct.error):
        return False


def _is_whole_shard(file: Path) -> bool:
    """A safetensors file: the length of its header, the header, and the tensors up to the last offset in it."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        if length > file.stat().st_size:
            return False
        header = json.loads(opened.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return file.stat().st_size == 8 + length + max(ends, default=0)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Within: no other process writes this folder. The lock is the system's, which takes it from whoever is killed."""
    try:
        import fcntl
    except ImportError:  # Windows: two may write the same bytes, each file moved whole
        yield
        return
    with (path.parent / f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_folder(loaded: Any, weights: dict[str, Tensor], tokenizer: Any, path: Path) -> None:
    """Write a model like the loaded one, with these weights, into a folder that exists: whole, or no model at all."""
    # A model that was read from GGUF refuses to be saved; one with its weights does not.
    config = copy.deepcopy(loaded.config)
    config.__dict__.pop("quantization_config", None)
    model = type(loaded)(config).to(loaded.dtype)
    model.load_state_dict(weights)
    for left in path.parent.glob(f".{path.name}.partial-*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    try:
        tokenizer.save_pretrained(staging)
        model.save_pretrained(staging)
        # The configuration last: without it the folder is no model.
        for file in sorted(staging.iterdir(), key=lambda file: file.name == "config.json"):
            os.replace(file, path / file.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def cache_folder() -> Path:
    """Where models may be kept: `$XDG_CACHE_HOME` or the user's cache; without a home, the user's own folder in /tmp.

    Raises CorrigendaError where that is another's, who could put a model there.
    """
    with contextlib.suppress(RuntimeError):  # no $HOME, and no entry for the user
        named = os.environ.get("XDG_CACHE_HOME", "")
        folder = (Path(named) if os.path.isabs(named) else Path.home() / ".cache") / "corrigenda"
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
    folder = Path(tempfile.gettempdir()) / f"corrigenda-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise CorrigendaError(f"No folder can be written for models: name one in $XDG_CACHE_HOME ({error}).") from None
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o022 or folder.is_symlink()):
        raise CorrigendaError(f"{folder} is not this user's alone: remove it, or name a cache in $XDG_CACHE_HOME.")
    return folder


def homeless() -> dict[str, str]:
    """What a program of others needs in its environment where the user has no home to write to, or no name."""
    wanted = {}
    home = os.path.expanduser("~")
    if not os.path.isabs(home) or not os.access(home, os.W_OK | os.X_OK):
        wanted["HOME"] = str(cache_folder())
    try:
        getpass.getuser()
    except (KeyError, OSError):
        wanted["USER"] = f"user-{os.getuid()}"
    return wanted
