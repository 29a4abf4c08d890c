"""What a reader holds of a memory or a router that goes on being written."""

from __future__ import annotations

import copy
import weakref
from typing import Self


class Viewed:
    """What readers see as it was when they asked: a view shares its tensors, which are then written no more.

    A class with containers of its own copies them in `view`; one that writes in place asks `_parted` before it does.
    """

    def __init__(self) -> None:
        self._views: weakref.WeakSet[Self] = weakref.WeakSet()

    def view(self) -> Self:
        """What is held now, for a reader: later writes to this one do not show there."""
        view = copy.copy(self)
        self._views.add(view)
        return view

    def _parted(self) -> bool:
        """Whether a view still reads the tensors of now. They are its own from here on: put others in their place."""
        read = bool(self._views)
        self._views = weakref.WeakSet()
        return read
