"""A store's folder, by its descriptor: what is opened or made in it is a plain file of its own, and no link followed.

A folder may come from elsewhere. A link in it could lead anywhere, and a pipe would keep who opens it waiting for ever.
"""

from __future__ import annotations

import contextlib
import os
import stat
import weakref
from pathlib import Path
from typing import Any

from ..errors import CorrigendaError

try:
    import fcntl
except ImportError:  # no such locks on this system: `Ledger.append` still notices another writer's entries
    fcntl = None

_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_AT_ONCE = getattr(os, "O_NONBLOCK", 0)
"""Opening a pipe for reading waits for a writer otherwise."""
_BY_DESCRIPTOR = os.open in os.supports_dir_fd
_PIECE = 1 << 20


class Folder:
    """An open folder. Its files are named by their last part alone; whatever is exchanged for the folder is not seen.

    Raises CorrigendaError where there is no such folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._locked_by: int | None = None
        try:
            flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
            self._descriptor = os.open(self.path, flags) if _BY_DESCRIPTOR else None
        except (FileNotFoundError, ValueError):
            raise CorrigendaError(f"There is no folder {self.path} with saved edits.") from None
        except NotADirectoryError:
            raise CorrigendaError(f"{self.path} is a file, not a folder with saved edits.") from None
        except OSError as error:
            raise CorrigendaError(f"The folder {self.path} cannot be opened: {error.strerror}.") from None
        # Also where nobody says `close`: a lock that outlives its holder would shut the folder for this process.
        self._close = weakref.finalize(self, os.close, self._descriptor) if _BY_DESCRIPTOR else lambda: None

    def close(self) -> None:
        """Give the folder, and the lock on it, back."""
        if self._locked_by == os.getpid():  # a child that was forked shares the lock, and may not take it off
            self._locked_by = None
            with contextlib.suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self._close()

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def lock(self) -> None:
        """Become the folder's only writer until it is closed; the system takes the lock back when its holder ends."""
        if fcntl is None:
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CorrigendaError(
                f"Another process is writing to {self.path}: wait until it has ended, then try again."
            ) from None
        self._locked_by = os.getpid()

    # Files

    def _at(self, name: str) -> tuple[str | Path, dict[str, Any]]:
        return (name, {"dir_fd": self._descriptor}) if _BY_DESCRIPTOR else (self.path / name, {})

    def identity(self) -> os.stat_result | None:
        """Of the folder itself, whatever has its path by now; None where folders have no descriptors."""
        return None if self._descriptor is None else os.fstat(self._descriptor)

    def status(self, name: str) -> os.stat_result | None:
        """Of a plain file of this name; None where there is none. Raises for anything else that has the name."""
        place, where = self._at(name)
        try:
            found = os.stat(place, follow_symlinks=False, **where)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(found.st_mode):
            raise CorrigendaError(f"{self.path / name} is not a plain file, and only such a one is opened.")
        return found

    def names(self) -> list[str]:
        """What is in the folder."""
        return sorted(os.listdir(self._descriptor if _BY_DESCRIPTOR else self.path))

    def read(self, name: str, most: int) -> bytes:
        """The first `most` bytes of a file; an OSError where it cannot be read."""
        descriptor = self._open(name, os.O_RDONLY | _AT_ONCE)
        try:
            parts, left = [], most
            while left and (part := os.read(descriptor, min(left, _PIECE))):
                parts.append(part)
                left -= len(part)
            return b"".join(parts)
        finally:
            os.close(descriptor)

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all, under whatever name it had before; an OSError where that cannot be."""
        staged = f".{name}"
        self.remove(staged)  # what a kill left, or a link: what is written is a file of our own making
        descriptor = self.make(staged)
        try:
            try:
                _write_all(descriptor, data)
            finally:
                os.close(descriptor)
            self.rename(staged, name)
        except BaseException:
            self.remove(staged)
            raise

    def make(self, name: str) -> int:
        """The descriptor of a new file, open for writing; an OSError where something has the name."""
        return self._open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)

    def copy(self, name: str, new: str) -> None:
        """Copy a file to a new name, on the disk when this returns; an OSError, and no such name, if it cannot."""
        source = self._open(name, os.O_RDONLY | _AT_ONCE)
        try:
            target = self.make(new)
            try:
                while part := os.read(source, _PIECE):
                    _write_all(target, part)
                os.fsync(target)
            except BaseException:
                self.remove(new)
                raise
            finally:
                os.close(target)
        finally:
            os.close(source)

    def rename(self, old: str, new: str) -> None:
        """Give a file of this folder another name; what had that name is gone, a link and not what it leads to."""
        (source, where), (target, _) = self._at(old), self._at(new)
        os.replace(
            source, target, **({"src_dir_fd": self._descriptor, "dst_dir_fd": self._descriptor} if where else {})
        )

    def take(self, file: Path, name: str) -> None:
        """Move a file of this project's own, on the same file system, into the folder."""
        place, where = self._at(name)
        os.replace(file, place, **({"dst_dir_fd": self._descriptor} if where else {}))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        place, where = self._at(name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place, **where)

    def free_name(self, name: str) -> str:
        """`name`, or the first of `name-1`, `name-2`, ... that nothing has."""
        taken = set(self.names())
        return next(free for n in range(len(taken) + 1) if (free := f"{name}-{n}" if n else name) not in taken)

    def flush(self) -> None:
        """Force the folder's list of names to the disk, where the system can."""
        if _BY_DESCRIPTOR:
            with contextlib.suppress(OSError):
                os.fsync(self._descriptor)

    def _open(self, name: str, flags: int) -> int:
        place, where = self._at(name)
        descriptor = os.open(place, flags | _NO_LINK, 0o644, **where)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(0, "it is not a plain file")
        return descriptor


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
