"""Who may ask the routes for edits what: by keys, by where a server listens, and by where a request comes from."""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ..editing.errors import CorrigendaError
from .errors import ServingError
from .settings import ServingSettings

KEY_HEADER = "x-corrigenda-key"
CHANGING, READING = "CORRIGENDA_EDITS_API_KEY", "CORRIGENDA_EDITS_READ_KEY"
"""Where keys stand: in the environment. A command line is shown to all of a machine's users, and logs have settings."""

_NAMED = re.compile(r"([A-Za-z0-9._-]{1,64})=(.+)", re.DOTALL)
_PROXIED = ("forwarded", "x-forwarded-for", "x-real-ip")


class Caller(NamedTuple):
    """Who asks: the name of a key, or the machine itself; and whether changes are theirs to make."""

    name: str
    may_change: bool


class Access:
    """The rules of one server.

    changing, reading: keys by name. Without a changing one, changes are taken from this machine alone, and only by a
    server that listens on nothing else (`local`); without a reading one, whoever reaches the server may read.
    """

    def __init__(
        self,
        settings: ServingSettings | None = None,
        *,
        local: bool = False,
        changing: Mapping[str, str] | None = None,
        reading: Mapping[str, str] | None = None,
    ) -> None:
        self.local = local
        self.changing = dict(changing or {})
        self.reading = dict(reading or {})
        self.hosts = settings.hosts if settings else ()
        self.origins = settings.origins if settings else ()
        self.tenant_header_only = bool(settings and settings.tenant_header_only)

    @classmethod
    def of_environment(cls, settings: ServingSettings | None, local: bool) -> Access:
        """With the keys that the environment names."""
        changing, reading = (keys_of(os.environ.get(name, ""), name) for name in (CHANGING, READING))
        return cls(settings, local=local, changing=changing, reading=reading)

    def caller(self, request: Any, changing: bool) -> Caller:
        """Who sends a request (Starlette's); raises a ServingError where what it asks is not theirs."""
        self._check_source(request.headers)
        given = request.headers.get(KEY_HEADER) or _bearer(request.headers.get("authorization"))
        name = _holder(self.changing, given)
        if name is not None:
            return Caller(name, True)
        if changing:
            if self.changing:
                raise ServingError(f"Changing edits needs a key: send it as the header {KEY_HEADER}.", 401)
            if not (self.local and _of_this_machine(request)):
                raise ServingError(
                    "This server can be reached from elsewhere, and has no key for changes: start it with "
                    "--edits-api-key, or on 127.0.0.1 alone.",
                    403,
                )
        may_change = not self.changing and self.local and _of_this_machine(request)
        reader = _holder(self.reading, given)
        if self.reading and reader is None and not may_change:
            raise ServingError(f"Reading about edits needs a key: send it as the header {KEY_HEADER}.", 401)
        return Caller(reader or "this machine" if may_change else reader or "anybody", may_change)

    def _check_source(self, headers: Any) -> None:
        """A page in a browser may send requests here, also under a name that its owner has made this machine's."""
        host = headers.get("host", "")
        names = self.hosts or (("localhost", "127.0.0.1", "[::1]") if self.local and not self.changing else ())
        if names and _without_port(host) not in names:
            raise ServingError("The header Host names no address of this server: allow it with --edits-host.", 421)
        origin = headers.get("origin")
        if (
            origin is not None
            and origin.lower() not in self.origins
            and urlsplit(origin.lower()).netloc != host.lower()
        ):
            raise ServingError("The header Origin names another site: allow it with --edits-origin.", 403)

    def tenant(self, header: str | None, given: str | None) -> str | None:
        """Whose a request is (`tenant_of`)."""
        return tenant_of(header, given, self.tenant_header_only)


def tenant_of(header: str | None, given: Any, header_only: bool) -> Any:
    """Whose a request is, by its header and by what else it says: the header has the word, and both must agree."""
    if given is not None and given != header:
        if header_only:
            raise ServingError("This server takes the name of a tenant from the header alone.", 403)
        if header is not None:
            raise ServingError("The request names one tenant in its header and another one besides.", 403)
    return header if header is not None else given


def keys_of(given: str | Sequence[str], where: str) -> dict[str, str]:
    """Keys by name, from `KEY` or `NAME=KEY`, one a line."""
    found: dict[str, str] = {}
    for line in given.splitlines() if isinstance(given, str) else given:
        if not line.strip():
            continue
        match = _NAMED.fullmatch(line.strip())
        # Base64 may end in "=", too.
        name, key = match.groups() if match and len(match[2]) > 2 else ("key", line.strip())
        if len(key) < 16 or not key.isascii() or not key.isprintable():
            raise CorrigendaError(
                f"A key in {where} must have 16 characters or more, of ASCII: `openssl rand -hex 32`."
            )
        if name in found:
            raise CorrigendaError(f'{where} has two keys of the name "{name}".')
        found[name] = key
    return found


def keep_keys(given: Mapping[str, Sequence[str]]) -> None:
    """Put keys for "changing" and "reading" where a server of this process, or one that it becomes, finds them.

    What is wrong with them, or with those of the environment, is said here: before a model is loaded.
    """
    for kind, name in (("changing", CHANGING), ("reading", READING)):
        if given.get(kind):
            os.environ[name] = "\n".join(given[kind])
        keys_of(os.environ.get(name, ""), name)


def listens_locally(host: str | None, default: str) -> bool:
    """Whether a server that is told to listen on `host` is reached from this machine alone."""
    name = host or default
    try:
        return name == "localhost" or ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _holder(keys: Mapping[str, str], given: str | None) -> str | None:
    """The name of the key that was given; every one is compared, in a time that does not tell how far it agrees."""
    sent = (given or "").encode("utf-8", "surrogateescape")
    found = [name for name, key in keys.items() if hmac.compare_digest(sent, key.encode())]
    return found[0] if found else None


def _bearer(header: str | None) -> str | None:
    scheme, _, key = (header or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


def _of_this_machine(request: Any) -> bool:
    """Whether a request comes from this machine, and from no proxy on it that speaks for others."""
    if any(name in request.headers for name in _PROXIED):
        return False
    return request.client is None or listens_locally(request.client.host, "")


def _without_port(host: str) -> str:
    name = host.lower()
    return name[: name.index("]") + 1] if name.startswith("[") and "]" in name else name.partition(":")[0]
