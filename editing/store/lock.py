"""One writer at a time: a lock on the folder that the system takes back when its holder ends, however it ends."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path

from ..errors import CorrigendaError

try:
    import fcntl
except ImportError:  # no such locks on this system: `Ledger.append` still notices another writer's entries
    fcntl = None


class WriterLock:
    """The right to write to a folder; raises where another process, or another ledger of this one, has it."""

    def __init__(self, directory: Path) -> None:
        self._release: Callable[[], object] = lambda: None
        if fcntl is None:
            return
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise CorrigendaError(
                f"Another process is writing to {directory}: wait until it has ended, then try again."
            ) from None
        # Also where nobody says `release`: a lock that outlives its holder would shut the folder for this process.
        self._release = weakref.finalize(self, os.close, descriptor)

    def release(self) -> None:
        """Let others write."""
        self._release()
