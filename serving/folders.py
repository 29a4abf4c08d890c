"""Which folders clients may name, and how: by ways from the root, each tenant's apart from all others'."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .errors import ServingError
from .settings import ServingSettings, resolved


class Folders:
    """The folders of a server, as its clients may name them.

    A folder that was served to one tenant alone, at the start or since, stays that tenant's until the server ends:
    nobody else has it loaded, shared or as another's, also after it is taken out. Other tenants are not told that it is
    there; whoever names none may see all of them, and is told whose it is.
    """

    def __init__(self, settings: ServingSettings) -> None:
        self._root = settings.root
        self._owner: dict[Path, str | None] = dict.fromkeys(settings.edits)
        for tenant, paths in settings.tenants.items():
            for path in paths:
                self.belongs(path, tenant)

    def belongs(self, path: Path, tenant: str | None) -> None:
        """Note whose a folder is that is served to a tenant; the first one has it, and what is shared is nobody's."""
        self._owner.setdefault(path, tenant)

    def name_of(self, path: Path) -> str:
        """What a client calls a folder: its way from the root, or else its last part alone."""
        if self._root is not None and path.is_relative_to(self._root):
            return path.relative_to(self._root).as_posix()
        return path.name

    def without_paths(self, text: str) -> str:
        """A sentence with folders called what clients call them."""
        for path in sorted(self._owner, key=lambda path: -len(str(path))):
            text = text.replace(str(path), self.name_of(path))
        return text if self._root is None else text.replace(f"{self._root}/", "").replace(str(self._root), "the root")

    def allowed(self, folder: str, tenant: str | None, served: Sequence[tuple[str | None, Path]]) -> Path:
        """The folder that may be loaded for a tenant (None: for all): one that it is served, or one under the root."""
        root = self._root
        own = [path for of, path in served if of in (None, tenant)]
        path = resolved(folder if root is None else root / folder)
        named = [known for known in dict.fromkeys(own) if known == path or self.name_of(known) == folder]
        if len(named) > 1 and path not in named:
            raise ServingError(f'Several folders are called "{folder}" here: they cannot be told apart by a name.', 409)
        if named:
            return path if path in named else named[0]
        inside = root is not None and path.is_relative_to(root)
        # A name that is too long, or one behind a closed folder, is none either; nor is another tenant's, for all that
        # this one may know.
        if inside and self._owner.get(path) in (None, tenant) and os.path.isdir(path):
            return path
        if tenant is None:  # asked by none of them, but with the key that lists them all
            for known, owner in self._owner.items():
                if owner is not None and (known == path or self.name_of(known) == folder):
                    raise ServingError(
                        f'The folder "{folder}" is the tenant "{owner}"\'s alone: name that tenant, or serve a copy.',
                        403,
                    )
        if root is None:
            raise ServingError('This server loads no further folders: start it with a "root" to allow it.', 403)
        if not inside:
            raise ServingError(f'The folder "{folder}" is outside of the root from where this server loads.', 403)
        raise ServingError(f'There is no folder "{folder}" under the root.', 404)
