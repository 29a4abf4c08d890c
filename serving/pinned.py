"""What was checked is what is opened: a folder that a request named, by a way without links."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ..editing.store.snapshots import Snapshot
from ..editing.store.store import EditStore
from .errors import ServingError

_HOW = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_PATH", os.O_RDONLY)

_NOWHERE = os.stat_result((0,) * 10)
"""No folder's: where there is none yet, opening says so; what has come there since is not the one that was checked."""


def opened(path: Path, write: bool = False, snapshot: Snapshot | None = None) -> EditStore:
    """The store of a folder, whose absolute path was resolved and checked: every part of it was a folder.

    snapshot: as it was at that one, for reading; None: as it is.

    A part that has become a link since would lead elsewhere. So the folder is sought once more, from the root of the
    file system and without following links, and the store must be that of the folder which is found: a store goes by
    the descriptor of its folder, whatever becomes of the path.
    """
    wanted = _without_links(path)
    store = EditStore.open(path, write=write) if snapshot is None else EditStore.at(path, snapshot)
    found = None if store.ledger.folder is None else store.ledger.folder.identity()
    if wanted is not None and found is not None and not os.path.samestat(wanted, found):
        store.close()
        raise ServingError("The folder was exchanged while it was opened: try again.", 409)
    return store


def _without_links(path: Path) -> os.stat_result | None:
    """Which folder a path leads to without links; None where the system cannot say."""
    if os.open not in os.supports_dir_fd or not hasattr(os, "O_NOFOLLOW"):
        return None
    with contextlib.ExitStack() as held:

        def held_open(part: str, inside: int | None) -> int:
            descriptor = os.open(part, _HOW | os.O_NOFOLLOW, dir_fd=inside)
            held.callback(os.close, descriptor)
            return descriptor

        try:
            folder = held_open(path.anchor, None)
            for part in path.parts[1:]:
                folder = held_open(part, folder)
        except NotADirectoryError as error:
            raise ServingError("The folder was exchanged for something else since it was named.", 409) from error
        except PermissionError:  # a folder that only lets through cannot be opened everywhere
            return None
        except OSError:
            return _NOWHERE
        return os.fstat(folder)
