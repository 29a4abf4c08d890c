"""Changing the edits of a running engine: rows first, on every worker, then the version that answers by them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...editing.errors import CorrigendaError
from ...editing.store.snapshots import Snapshot
from ..access import Access
from ..errors import ServingError
from ..served_edits import Change
from ..settings import resolved

if TYPE_CHECKING:
    from .admission import Admissions

_AT_ONCE = 64
"""Edits that a worker loads between two steps: each is a read of some tens of kilobytes."""


def edits_of(llm: Any) -> Edits:
    """The edits of an offline `vllm.LLM`: `load`, `undo`, `why`, and which one answered."""
    engine = llm.llm_engine
    admissions = getattr(engine.input_processor, "corrigenda", None)
    if admissions is None:
        raise CorrigendaError('This engine serves no edits: give LLM additional_config={"corrigenda": FOLDER}.')
    return Edits(engine, admissions)


class Edits:
    """The edits of an engine in this process."""

    def __init__(self, engine: Any, admissions: Admissions) -> None:
        self._engine = engine
        self._admissions = admissions
        self.catalogue = admissions.catalogue

    def load(self, folder: str | Path, tenant: str | None = None, snapshot: Snapshot | None = None) -> Change:
        """Read a folder, for the first time or anew, and answer by what it holds, or held at a snapshot."""
        return self._take(self.catalogue.read([(tenant, resolved(folder))], snapshot=snapshot))

    def undo(self, name: str, tenant: str | None = None, author: str | None = None) -> Change:
        """Undo an edit in its store's ledger, and answer without it."""
        return self._take(self.catalogue.undo(name, tenant, author=author))

    def redo(self, name: str, tenant: str | None = None, author: str | None = None) -> Change:
        """Put an undone edit in again, in its store's ledger, and answer by it."""
        return self._take(self.catalogue.redo(name, tenant, author=author))

    def why(self, prompt: str, tenant: str | None = None) -> dict[str, Any]:
        return self.catalogue.why(prompt, tenant)

    def applied(self, outputs: Sequence[Any]) -> list[str | None]:
        """The id of the edit that answered each of `LLM.generate`'s outputs."""
        found = [self._admissions.of(output.request_id) for output in outputs]
        failed = [any(part.finish_reason == "error" for part in output.outputs) for output in outputs]
        return [
            None if broken or one is None or one.edit is None else one.edit.id for one, broken in zip(found, failed)
        ]

    def _take(self, change: Change) -> Change:
        for arguments in _loads(change):
            _require(self._engine.collective_rpc("corrigenda_load", args=arguments))
        self.catalogue.publish(change)
        keep = self.catalogue.keys() | self._admissions.pinned(self._engine.output_processor)
        self._engine.collective_rpc("corrigenda_keep", args=(sorted(keep),))
        self._admissions.metrics.changed(self.catalogue, len(change.added), len(change.removed))
        return change


class AsyncEdits:
    """The edits of a server's engine: the same, one change at a time, while requests go on; none before `start`."""

    def __init__(self) -> None:
        self._client: Any = None
        self._admissions: Admissions | None = None
        self.access = Access()
        self._changing = asyncio.Lock()

    @property
    def catalogue(self) -> Any:
        if self._admissions is None:
            raise ServingError(
                'This server was started without edits: name a folder in additional_config\'s "corrigenda".', 409
            )
        return self._admissions.catalogue

    async def start(self, client: Any, local: bool = False) -> None:
        """Make sure that every worker has what the catalogue answers by, whatever was written between their starts."""
        self._client = client
        self._admissions = getattr(client.input_processor, "corrigenda", None)
        if self._admissions is not None:
            self.access = Access.of_environment(self.catalogue.settings, local)
            await self._load(self.catalogue.start)

    def without_paths(self, text: str) -> str:
        return text if self._admissions is None else self.catalogue.without_paths(text)

    async def load(self, store: str, tenant: str | None, snapshot: Snapshot | None) -> dict[str, Any]:
        path = self.catalogue.allowed(store, tenant)
        async with self._changing:
            return await self._take(await asyncio.to_thread(self.catalogue.read, [(tenant, path)], None, snapshot))

    async def stage(self, store: str, tenant: str | None, snapshot: Snapshot) -> dict[str, Any]:
        path = self.catalogue.allowed(store, tenant)
        async with self._changing:
            change = await asyncio.to_thread(self.catalogue.read, [(tenant, path)], None, snapshot)
            await self._load(change)
            self.catalogue.stage(change)
            return change.to_dict(self.catalogue.version)

    async def drop_staged(self, store: str, tenant: str | None) -> dict[str, Any]:
        path = self.catalogue.allowed(store, tenant)
        async with self._changing:
            self.catalogue.drop_staged(tenant, path)
            await self._keep()
            return {"version": self.catalogue.version, "added": [], "removed": []}

    async def undo(self, edit: str, tenant: str | None, store: str | None, author: str | None) -> dict[str, Any]:
        path = None if store is None else self.catalogue.allowed(store, tenant)
        async with self._changing:
            return await self._take(await asyncio.to_thread(self.catalogue.undo, edit, tenant, path, author))

    async def redo(self, edit: str, tenant: str | None, store: str | None, author: str | None) -> dict[str, Any]:
        path = None if store is None else self.catalogue.allowed(store, tenant)
        async with self._changing:
            return await self._take(await asyncio.to_thread(self.catalogue.redo, edit, tenant, path, author))

    async def unload(self, store: str, tenant: str | None) -> dict[str, Any]:
        async with self._changing:
            return await self._take(self.catalogue.unload(tenant, self.catalogue.allowed(store, tenant)))

    async def forget(self, tenant: str) -> dict[str, Any]:
        async with self._changing:
            return await self._take(self.catalogue.forget(tenant))

    async def listing(self, tenant: str | None, everything: bool) -> dict[str, Any]:
        return self.catalogue.listing(tenant, everything)

    async def narrow(self, tenant: str | None, everything: bool) -> dict[str, Any]:
        return {"requests": self.catalogue.watch.narrow(tenant, everything)}

    async def why(self, prompt: str, tenant: str | None) -> dict[str, Any]:
        return await asyncio.to_thread(self.catalogue.why, prompt, tenant)

    async def _take(self, change: Change) -> dict[str, Any]:
        await self._load(change)
        version = await asyncio.to_thread(self.catalogue.publish, change)
        await self._keep()
        self._admissions.metrics.changed(self.catalogue, len(change.added), len(change.removed))
        return change.to_dict(version)

    async def _keep(self) -> None:
        """Have workers drop the rows that neither the catalogue nor a request in flight has use for."""
        keep = self.catalogue.keys() | self._admissions.pinned(self._client.output_processor)
        await self._of_all_workers("corrigenda_keep", sorted(keep))

    async def _load(self, change: Change) -> None:
        for arguments in _loads(change):
            _require(await self._of_all_workers("corrigenda_load", *arguments))

    async def _of_all_workers(self, method: str, *arguments: Any) -> list[Any]:
        """What a method of every worker gives, of each engine where there are several (data parallelism).

        `collective_rpc` of the client itself has it run in all of them, and gives the first one's results.
        """
        core = self._client.engine_core
        found = await core.call_utility_all_async("collective_rpc", method, None, arguments, None)
        return [result for of_engine in found for result in of_engine]


def _loads(change: Change) -> list[tuple[str, dict[str, int]]]:
    """What workers are to load, in pieces: between two of them the engine makes a step."""
    return [
        (str(folder), dict(list(edits.items())[start : start + _AT_ONCE]))
        for folder, edits in change.needed.items()
        for start in range(0, len(edits), _AT_ONCE)
    ]


def _require(results: Sequence[dict[str, Any]]) -> None:
    """Raise what a worker could not load; edits that others did load are dropped with the next change."""
    for result in results:
        if "error" in result:
            raise ServingError(result["error"], result["status"])
