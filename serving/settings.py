"""What a server is told at its start: which edits it answers by, and who may have others loaded."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..editing.errors import CorrigendaError
from ..editing.shown import name as checked_name
from ..editing.store.files import reason_of
from .errors import ServingError


@dataclass(frozen=True)
class ServingSettings:
    """How edits are served.

    edits     folders of edits that every request sees; the first also says layer and method
    tenants   further folders by the name of a tenant, whose requests alone see them
    root      the folder under which edits may be loaded while serving; None: only those named here
    capacity  how many edits there is room for, in each form that rows of the start's folders are kept in; None: twice
              those of the start, and at least 1,024
    rows      how many answer positions an edit has on average, which with `capacity` gives the size of the buffers; an
              edit of more than 512 of them is taken only where this is as large
    resident  how many edits of one form have their rows where the layer reads: no fewer than requests are in a batch.
              Others are read when a request comes for them, and an edit of more than `rows` positions is refused; None:
              all of them. In transformers alone
    read_only whether undoing an edit through the server is refused
    most_tenants, most_folders
              how many tenants, and folders of all of them, there may be: those of the start always are
    tenant_header_only
              whether a tenant is named by the header alone, which a gateway in front sets or takes off: a request
              that names one in any other way is refused
    hosts     what the header Host may say to the routes for edits, without port; empty: names of this machine alone
              where the server listens on nothing else, anything where it asks for a key
    origins   what the header Origin may say to them, besides the server itself
    signed_by a file of public keys: only folders are served that one of them has signed (`corrigenda sign`), and the
              server changes none
    router    "tokens" finds edits that were written for the router by meaning by their rare tokens alone, where its
              encoder is missing; None: each by its own router
    """

    edits: tuple[Path, ...]
    tenants: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    root: Path | None = None
    capacity: int | None = None
    rows: int = 8
    read_only: bool = False
    most_tenants: int = 64
    most_folders: int = 256
    tenant_header_only: bool = False
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    signed_by: Path | None = None
    router: str | None = None
    resident: int | None = None

    @property
    def folders(self) -> list[Path]:
        """Every folder of the start, tenants' included."""
        return [*self.edits, *itertools.chain.from_iterable(self.tenants.values())]

    @classmethod
    def parse(cls, given: Any) -> ServingSettings:
        """From what a stack's configuration holds: a folder, or an object of the fields above."""
        if isinstance(given, ServingSettings):
            return given
        if isinstance(given, (str, Path)):
            given = {"edits": given}
        if not isinstance(given, Mapping):
            raise CorrigendaError(f'"corrigenda" must be a folder of edits or an object of settings, not {given!r}.')
        unknown = sorted(set(given) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            names = ", ".join(f.name for f in dataclasses.fields(cls))
            raise CorrigendaError(f'"corrigenda" has no setting "{unknown[0]}": use some of {names}.')
        tenants = given.get("tenants") or {}
        if not isinstance(tenants, Mapping) or not all(isinstance(name, str) and name for name in tenants):
            raise CorrigendaError('"tenants" must be an object of folders by the names of tenants.')
        for name in tenants:
            checked_name("tenants", name)
        settings = cls(
            _folders(given.get("edits"), "edits"),
            {name: _folders(value, f"tenants.{name}", empty=True) for name, value in tenants.items()},
            None if given.get("root") is None else _folder(given["root"], "root"),
            given.get("capacity"),
            given.get("rows", 8),
            given.get("read_only", False),
            given.get("most_tenants", 64),
            given.get("most_folders", 256),
            given.get("tenant_header_only", False),
            _texts(given.get("hosts"), "hosts"),
            _texts(given.get("origins"), "origins"),
            None if given.get("signed_by") is None else _folder(given["signed_by"], "signed_by"),
            given.get("router"),
            given.get("resident"),
        )
        for name in ("capacity", "rows", "resident", "most_tenants", "most_folders"):
            value = getattr(settings, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise CorrigendaError(f'"{name}" must be a whole number above 0, not {value!r}.')
        if settings.router not in (None, "tokens", "meaning"):
            raise CorrigendaError(f'"router" must be "tokens" or "meaning", not {settings.router!r}.')
        for name in ("read_only", "tenant_header_only"):
            if not isinstance(getattr(settings, name), bool):
                raise CorrigendaError(f'"{name}" must be true or false, not {getattr(settings, name)!r}.')
        return settings


def _texts(value: Any, name: str) -> tuple[str, ...]:
    values = () if value is None else value
    if not isinstance(values, (list, tuple)) or not all(isinstance(one, str) and one for one in values):
        raise CorrigendaError(f'"{name}" must be a list of texts, not {value!r}.')
    return tuple(one.lower() for one in values)


def _folders(value: Any, name: str, empty: bool = False) -> tuple[Path, ...]:
    values = [value] if isinstance(value, (str, Path)) else value
    if values is None and empty:
        return ()
    if not isinstance(values, (list, tuple)) or not (values or empty):
        raise CorrigendaError(f'"{name}" must name a folder of edits, or a list of such folders.')
    return tuple(_folder(one, name) for one in values)


def _folder(value: Any, name: str) -> Path:
    if not isinstance(value, (str, Path)) or not str(value):
        raise CorrigendaError(f'"{name}" must hold folders as text, not {value!r}.')
    return resolved(value)


def resolved(folder: str | Path) -> Path:
    """The folder in full; an error where no folder can have that name."""
    try:
        return Path(folder).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # too long or a loop of links, no such user, no file's name
        raise ServingError(f"No folder can be named {str(folder)!r}: {reason_of(error)}.", 400) from None
