"""A roll-out: servers of one folder turn to a snapshot of it together, over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CorrigendaError
from .folder import Folder
from .snapshots import Snapshot, write_active
from .store import EditStore

_LONGEST = 1 << 20


@dataclass(frozen=True)
class Server:
    """A server's address, the key by which it takes changes, and the seconds that it has for an answer."""

    address: str
    key: str | None = None
    timeout: float = 60.0

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise CorrigendaError(f'"{self.address}" is no address of a server: write http://HOST:PORT.')

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """What the server answers; raises CorrigendaError with its own sentence, or with why there is none."""
        headers = {"content-type": "application/json"} | ({"x-corrigenda-key": self.key} if self.key else {})
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address.rstrip("/") + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return json.loads(response.read(_LONGEST))
        except urllib.error.HTTPError as error:
            raise CorrigendaError(f"{self.address} refused: {_sentence(error)}") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise CorrigendaError(f"{self.address} did not answer: {str(reason).rstrip('.')}.") from error


def _sentence(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read(_LONGEST))["error"]["message"])
    except (ValueError, KeyError, TypeError, OSError):
        return f"status {error.code}."


@dataclass
class RolledOut:
    """What became of a roll-out.

    committed: whether the folder names the snapshot now; if not, no server has turned to it
    turned: addresses of servers that answer by it; failed: of each other one, what it said
    """

    snapshot: Snapshot
    committed: bool = False
    turned: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "snapshot": str(self.snapshot),
            "committed": self.committed,
            "turned": self.turned,
            "failed": self.failed,
        }


def roll_out(
    directory: Path,
    servers: Sequence[Server],
    snapshot: Snapshot | None = None,
    *,
    store: str | None = None,
    tenant: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> RolledOut:
    """Turn all servers to a snapshot of a folder, or none: two-phase commit, whose decision is the folder's own.

    snapshot: None for what the folder holds now; store: the folder as the servers know it, its own path where None;
    tenant: whose it is, where only that one's requests see it. Between the two steps the folder is told which snapshot
    is to be served (`write_active`). Until then no server has turned, whatever becomes of this process; after that a
    server that starts anew turns by itself, and running the same again turns those that were left. Nobody writes to
    the folder meanwhile. Raises CorrigendaError where it holds no such snapshot, or is being written.
    """
    if not servers:
        raise CorrigendaError("A roll-out needs the address of at least one server.")
    if len({server.address for server in servers}) < len(servers):
        raise CorrigendaError("A server is named twice.")
    with Folder(directory) as folder:
        folder.lock()
        found = EditStore.open(folder) if snapshot is None else EditStore.at(folder, snapshot)
        done = RolledOut(found.snapshot)
        found.close()
        body = {"store": store or str(directory), "snapshot": str(done.snapshot)}
        query = {"store": body["store"]}
        if tenant is not None:
            body["tenant"] = query["tenant"] = tenant
        ready = _at_each(servers, lambda server: server.ask("POST", "/v1/snapshots", body), "is ready for", done, tell)
        if done.failed:
            path = f"/v1/snapshots?{urllib.parse.urlencode(query)}"
            # One that does not answer keeps rows that nobody asks for, until its next change.
            left = RolledOut(done.snapshot)
            _at_each(ready, lambda server: server.ask("DELETE", path), "has let go of", left, tell)
            return done
        write_active(folder, done.snapshot)
        done.committed = True
        turned = _at_each(servers, lambda server: server.ask("POST", "/v1/edits", body), "answers by", done, tell)
        done.turned = [server.address for server in turned]
    return done


def _at_each(
    servers: Sequence[Server],
    asked: Callable[[Server], object],
    did: str,
    done: RolledOut,
    tell: Callable[[str], None],
) -> list[Server]:
    """Ask servers, all at once; those that did it. What others said goes into `done`."""
    able = []
    with ThreadPoolExecutor(max(1, len(servers))) as pool:
        for server, coming in [(server, pool.submit(asked, server)) for server in servers]:
            try:
                coming.result()
            except CorrigendaError as error:
                done.failed[server.address] = str(error)
                tell(str(error))
            else:
                able.append(server)
                tell(f"{server.address} {did} {done.snapshot}.")
    return able
