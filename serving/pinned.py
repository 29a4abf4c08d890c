"""What was checked is what is opened: a folder that a request named, held while its ledger is opened."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from ..editing.store.files import LEDGER_NAME
from .errors import ServingError

_DESCRIPTORS = Path("/proc/self/fd")
_opening = threading.Lock()


@contextlib.contextmanager
def pinned(path: Path) -> Iterator[None]:
    """Within: whoever opens the ledger of a folder opens the one that is there now, by a way without links.

    path is absolute and was resolved: every part of it was a folder. A part that has become a link since is not
    followed; and SQLite, which goes by the path again, must have opened the file that was found here: else this raises
    a ServingError, after the opening. Where a system does not list a process's descriptors, the path is looked at
    before and after.
    """
    with _opening, _held(path) as folder:
        wanted = _file(folder, path)  # None: whoever opens it says so
        before = _open_files().count(wanted)
        yield
        opened = _open_files()
        if wanted is None or (opened.count(wanted) <= before if opened else _file(None, path) != wanted):
            raise ServingError("The folder was exchanged while it was opened: try again.", 409)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[int]:
    """A descriptor of the folder, by a way without links."""
    how = os.O_DIRECTORY | getattr(os, "O_PATH", os.O_RDONLY)
    folder = os.open(path.anchor, how)
    try:
        for part in path.parts[1:]:
            inner = os.open(part, how | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        yield folder
    except NotADirectoryError as error:
        raise ServingError("The folder was exchanged for something else since it was named: try again.", 409) from error
    except FileNotFoundError as error:
        raise ServingError("The folder is not there any more.", 404) from error
    except PermissionError as error:
        raise ServingError("The folder cannot be opened by this server.", 404) from error
    finally:
        os.close(folder)


def _file(folder: int | None, path: Path) -> tuple[int, int] | None:
    """Which file the ledger is, if there is one."""
    name = LEDGER_NAME if folder is not None else str(path / LEDGER_NAME)
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise ServingError("The ledger is not a plain file, and only such a one is opened.", 422)
    return found.st_dev, found.st_ino


def _open_files() -> list[tuple[int, int] | None]:
    """Every file that this process has open; empty where the system does not say."""
    found: list[tuple[int, int] | None] = []
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(_DESCRIPTORS):
            with contextlib.suppress(OSError):
                status = os.fstat(int(name))
                found.append((status.st_dev, status.st_ino))
    return found
