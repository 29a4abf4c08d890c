"""Servers with edits: `transformers serve`, whose model is made a `ServedModel`; vLLM's is in `vllm/launcher.py`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..editing.backbone.loading import PACKAGED, check_model, load_base, readable_errors
from ..editing.errors import CorrigendaError
from ..editing.store.snapshots import Snapshot
from .access import Access, keep_keys, listens_locally
from .edit_header import EditHeader
from .endpoints import edits_router
from .errors import ServingError, error_body
from .log import logger_of
from .metrics import exposition
from .settings import ServingSettings
from .stores import check_served

STACKS = ("transformers", "vllm")


def launch(
    stack: str,
    model: str,
    settings: dict[str, Any],
    options: Sequence[str] = (),
    keys: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """Start a stack's own server with a model and edits, until it is stopped; `options` are that server's.

    keys: those for "changing" edits and for "reading" about them, each `KEY` or `NAME=KEY`; else the environment's.
    """
    keep_keys(keys or {})
    check_model(model)
    if stack == "transformers":
        return serve_transformers(model, ServingSettings.parse(settings), options)
    if stack == "vllm":
        from .vllm.launcher import serve

        return serve(model, settings, options)
    raise CorrigendaError(f'There is no stack "{stack}": use {" or ".join(STACKS)}.')


def serve_transformers(model: str, settings: ServingSettings, options: Sequence[str] = ()) -> Any:
    """`transformers serve MODEL OPTIONS` in continuous batching, with edits."""
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise CorrigendaError("`transformers serve` needs more packages: run `pip install 'corrigenda[serve]'`.")
    import typer
    from transformers.cli.serve import Serve

    check_served(settings)
    program = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    program.command(name="serve")(Serve)
    _show_log()
    local = listens_locally(_option(options, "--host"), "localhost")
    edits = LiveEdits(model, settings, Access.of_environment(settings, local))
    serving = False
    try:
        with _seams(edits):
            server = typer.main.get_command(program).main(
                [model, *options, "--continuous-batching"], prog_name="transformers serve", standalone_mode=False
            )
        serving = "--non-blocking" in options
        return server
    except Exception as error:
        message = getattr(error, "format_message", None)  # a usage error's; typer may carry a click of its own
        if message is None:
            raise
        raise CorrigendaError(f"transformers serve: {message()}") from None
    finally:
        if not serving:  # the server would wait for its generation's thread for ever
            edits.stop()


class LiveEdits:
    """The edits of a running server, as its routes ask for them; `served` is there once the model is loaded."""

    def __init__(self, name: str, settings: ServingSettings, access: Access | None = None) -> None:
        self.name = name
        self.settings = settings
        self.access = Access(settings) if access is None else access
        self.served: Any = None
        self._tokenizer: Any = None
        self._model: Any = None

    # The server's own loading

    def processor(self, manager: Any, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The tokenizer, as the server asks for it before the model."""
        if self._ours:
            self._model, tokenizer = load_base(self.name, device=str(manager.device), dtype=_dtype(manager))
            self._tokenizer = tokenizer
            return tokenizer
        with readable_errors(self.name):
            processor = original(manager, *args, **kwargs)
        self._tokenizer = getattr(processor, "tokenizer", processor)
        return processor

    def model(self, manager: Any, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The model, patched."""
        from .batching import ServedModel

        if self._ours:
            model = self._model
        else:
            with readable_errors(self.name):
                model = original(manager, *args, **kwargs)
        if not hasattr(model, "init_continuous_batching"):
            raise CorrigendaError(f'"{self.name}" cannot be served with edits: it has no continuous batching.')
        self.served = ServedModel(model, self._tokenizer, self.settings)
        return model

    @property
    def _ours(self) -> bool:
        """Whether `load_base` must load it: the server knows neither the packaged model nor a GGUF file by its path."""
        return self.name == PACKAGED or Path(self.name).is_file()

    def stop(self) -> None:
        """End what still answers: the server leaves its thread running."""
        if self.served is not None:
            self.served.close()

    # `ServedEdits`

    def without_paths(self, text: str) -> str:
        return self.served.catalogue.without_paths(text)

    async def load(self, store: str, tenant: str | None, snapshot: Snapshot | None) -> dict[str, Any]:
        path = self.served.catalogue.allowed(store, tenant)
        return await asyncio.to_thread(self.served.load, path, tenant, snapshot)

    async def stage(self, store: str, tenant: str | None, snapshot: Snapshot) -> dict[str, Any]:
        path = self.served.catalogue.allowed(store, tenant)
        return await asyncio.to_thread(self.served.stage, path, snapshot, tenant)

    async def drop_staged(self, store: str, tenant: str | None) -> dict[str, Any]:
        path = self.served.catalogue.allowed(store, tenant)
        return await asyncio.to_thread(self.served.drop_staged, path, tenant)

    async def undo(self, edit: str, tenant: str | None, store: str | None, author: str | None) -> dict[str, Any]:
        path = None if store is None else self.served.catalogue.allowed(store, tenant)
        return await asyncio.to_thread(self.served.undo, edit, tenant, path, author)

    async def redo(self, edit: str, tenant: str | None, store: str | None, author: str | None) -> dict[str, Any]:
        path = None if store is None else self.served.catalogue.allowed(store, tenant)
        return await asyncio.to_thread(self.served.redo, edit, tenant, path, author)

    async def unload(self, store: str, tenant: str | None) -> dict[str, Any]:
        path = self.served.catalogue.allowed(store, tenant)
        return await asyncio.to_thread(self.served.unload, path, tenant)

    async def forget(self, tenant: str) -> dict[str, Any]:
        return await asyncio.to_thread(self.served.forget, tenant)

    async def listing(self, tenant: str | None, everything: bool) -> dict[str, Any]:
        return self.served.catalogue.listing(tenant, everything)

    async def narrow(self, tenant: str | None, everything: bool) -> dict[str, Any]:
        return {"requests": self.served.catalogue.watch.narrow(tenant, everything)}

    async def why(self, prompt: str, tenant: str | None) -> dict[str, Any]:
        return await asyncio.to_thread(self.served.why, prompt, tenant)


def _option(options: Sequence[str], name: str) -> str | None:
    """What a command line gives for an option, the last time that it does."""
    found = None
    for given, value in zip(options, [*options[1:], ""]):
        if given == name:
            found = value
        elif given.startswith(f"{name}="):
            found = given.partition("=")[2]
    return found


def _dtype(manager: Any) -> Any:
    return None if manager.dtype == "auto" else manager.dtype


@contextlib.contextmanager
def _seams(edits: LiveEdits) -> Iterator[None]:
    """Within: the server loads the model that it is pinned to with edits, and has routes for them."""
    from huggingface_hub.errors import CacheNotFound
    from transformers.cli.serving import server
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.cli.serving.utils import split_model_id

    build = server.build_server
    originals = {name: getattr(ModelManager, name) for name in ("_load_processor", "_load_model")}

    @functools.wraps(build)
    def build_server(*args: Any, **kwargs: Any) -> Any:
        if edits.served is None:
            raise CorrigendaError("This release of transformers loads its model elsewhere: no edits would be served.")
        given = inspect.signature(build).bind(*args, **kwargs).arguments
        _check_messages(given.get("chat_handler"))
        app = build(*args, **kwargs)
        app.include_router(edits_router(edits))
        if exposition() is not None:
            app.add_api_route("/metrics", _metrics, include_in_schema=False)
        app.add_middleware(EditHeader)
        app.add_exception_handler(CorrigendaError, _refuse)
        app.add_exception_handler(CacheNotFound, functools.partial(_served_alone, edits.name))
        return app

    def loading(name: str, ours: Callable[..., Any]) -> Callable[..., Any]:
        original = originals[name]

        @functools.wraps(original)
        def load(manager: Any, model_id_and_revision: str, *args: Any, **kwargs: Any) -> Any:
            pinned = manager.process_model_name(split_model_id(manager.force_model)[0])
            if model_id_and_revision != pinned:  # loaded on request, and never asked
                return original(manager, model_id_and_revision, *args, **kwargs)
            return ours(manager, original, model_id_and_revision, *args, **kwargs)

        return load

    server.build_server = build_server
    ModelManager._load_processor = loading("_load_processor", edits.processor)
    ModelManager._load_model = loading("_load_model", edits.model)
    try:
        yield
    finally:
        server.build_server = build
        for name, original in originals.items():
            setattr(ModelManager, name, original)


def _check_messages(handler: Any) -> None:
    """Let a chat without a turn be refused: the server itself fails inside of its template."""
    validate = getattr(handler, "_validate_request", None)
    if validate is None:  # a release that has it elsewhere says what it says
        return

    @functools.wraps(validate)
    def checked(body: dict[str, Any]) -> None:
        validate(body)
        turns = body.get("messages")
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
            raise ServingError('The request must hold "messages", a list of one turn or more.', 422)

    handler._validate_request = checked


async def _served_alone(name: str, request: Any, error: Exception) -> Any:
    """Where there is no cache of the hub's models to list, that which is served."""
    from fastapi.responses import JSONResponse

    if request.url.path != "/v1/models":
        raise error
    model = {"id": name, "object": "model", "owned_by": "", "created": 0}
    return JSONResponse({"object": "list", "data": [model]})


async def _metrics() -> Any:
    from fastapi.responses import Response

    content, kind = exposition()
    return Response(content, media_type=kind)


async def _refuse(request: Any, error: Exception) -> Any:
    """A request that names no tenant of ours, or another's id."""
    from fastapi.responses import JSONResponse

    status = getattr(error, "status", 422)
    return JSONResponse(error_body(error, status), status_code=status)


def _show_log() -> None:
    logger = logger_of("corrigenda")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s:     %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
