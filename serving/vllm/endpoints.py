"""vLLM's endpoint plugin: the routes of `serving/endpoints.py` on its server, and the edit's id in every response."""

from __future__ import annotations

from typing import Any

from ..access import listens_locally
from ..edit_header import EditHeader
from ..endpoints import edits_router
from ..errors import ServingError
from .live import AsyncEdits


class EditsEndpoints:
    """Named in VLLM_PLUGINS as `corrigenda_edits`. Like all of /v1 the routes ask for the server's API key, if any."""

    name = "corrigenda_edits"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._edits = AsyncEdits()

    def attach_router(self, app: Any) -> None:
        app.include_router(edits_router(self._edits, "vllm.corrigenda"))
        app.add_middleware(EditHeader)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        if getattr(args, "api_server_count", None) not in (None, 1):
            raise ServingError(
                "Edits are served by one API server, also of several engines (--data-parallel-size): start it with "
                "--api-server-count 1."
            )
        # Without a host it listens on all addresses; a socket in the file system is this machine's.
        local = bool(getattr(args, "uds", None)) or listens_locally(getattr(args, "host", None), "0.0.0.0")
        await self._edits.start(engine_client, local)
