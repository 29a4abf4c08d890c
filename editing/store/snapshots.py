"""Snapshots: names for the states that a ledger went through, and the one that a folder's servers answer by."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from ..errors import CorrigendaError
from .folder import Folder
from .reading import LedgerReader

ACTIVE_NAME = "active.json"
"""Beside the ledger: the snapshot that servers of this folder answer by; without it, each by what it has read."""

_DIGITS = 16
_NAME = re.compile(rf"([1-9]\d{{0,17}})-([0-9a-f]{{{_DIGITS}}})")
_LARGEST = 4096


class Snapshot(NamedTuple):
    """A ledger as far as one of its entries. Entries are never changed, so neither is what the name stands for.

    entries: how many; digest: the first 16 hexadecimal digits of the last one's checksum, which covers all of them
    """

    entries: int
    digest: str

    def __str__(self) -> str:
        return f"{self.entries}-{self.digest}"

    @classmethod
    def of(cls, ledger: LedgerReader) -> Snapshot:
        """What was read of a ledger."""
        return cls(ledger.count, ledger.chain.hex()[:_DIGITS])

    @classmethod
    def parse(cls, name: str) -> Snapshot:
        """A snapshot by its name; raises where that is none."""
        found = _NAME.fullmatch(name)
        if found is None:
            raise CorrigendaError(
                f'"{name[:100]}" is no name of a snapshot: `corrigenda snapshot DIR` gives one, as 12-0123456789abcdef.'
            )
        return cls(int(found[1]), found[2])


def read_active(folder: Folder) -> Snapshot | None:
    """The snapshot that a folder names as the one to serve; raises where it names none that could be."""
    if folder.status(ACTIVE_NAME) is None:
        return None
    try:
        return Snapshot.parse(json.loads(folder.read(ACTIVE_NAME, _LARGEST))["snapshot"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorrigendaError(
            f"{folder.path / ACTIVE_NAME} names no snapshot to serve ({str(error).rstrip('.')}): roll one out anew, or "
            "remove the file."
        ) from error


def write_active(folder: Folder, snapshot: Snapshot) -> None:
    """Name the snapshot to serve; on the disk when this returns."""
    folder.write(ACTIVE_NAME, json.dumps({"snapshot": str(snapshot)}).encode() + b"\n")
    folder.flush()
