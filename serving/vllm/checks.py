"""What is checked when a server starts: that the edits are for this model, and that nothing would make them wrong."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from vllm.utils.import_utils import resolve_obj_by_qualname

from ...editing.backbone.identity import another_model
from ...editing.errors import CorrigendaError
from ...editing.profiling import scope
from ..settings import ServingSettings
from ..stores import open_store, served_config
from .keys import CONFIG, LAYER, settings_in
from .protocols import EngineConfig
from .worker import EditsWorker

EXTENSION = f"{__package__}.worker.EditsWorker"


def checked(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """`EngineArgs.create_engine_config`: the configuration, with the edits' layer in it, or one sentence why not."""
    extra = self.additional_config
    if isinstance(extra, dict) and CONFIG in extra:
        scope("edit: swap")  # raises now, not in the first pass, where no such kind of ranges is there
        self.worker_extension_cls = self.worker_extension_cls or EXTENSION
        if not issubclass(resolve_obj_by_qualname(self.worker_extension_cls), EditsWorker):
            raise CorrigendaError(
                f"Corrigenda extends vLLM's workers by {EXTENSION}: make {self.worker_extension_cls} a subclass of it, "
                "or leave worker_extension_cls out."
            )
        # Part of the key of compiled code, which names the layer: code for another one must not be found again.
        self.additional_config = {**extra, LAYER: _layer(ServingSettings.parse(extra[CONFIG]))}
    config = original(self, *args, **kwargs)
    if settings_in(config) is not None:
        _check(config)
    return config


def _layer(settings: ServingSettings) -> dict[str, Any]:
    if settings.resident is not None:
        raise CorrigendaError(
            'In vLLM the rows of all edits are where the layer reads: leave out "resident", or serve by transformers.'
        )
    store = open_store(settings.edits[0])
    try:
        config = served_config(store, settings.router)
        base = store.header["base"]
        return {
            "layer": config.layer,
            "layers": base["layers"],
            "widths": base["widths"],
            "method": config.method,
            "beta": config.beta,
            "version": version("corrigenda"),
        }
    finally:
        store.close()


def _check(config: EngineConfig) -> None:
    layer = config.additional_config[LAYER]
    model = config.model_config.hf_text_config
    found = {
        "layers": model.num_hidden_layers,
        "widths": [getattr(model, "intermediate_size", None), model.hidden_size],
    }
    if sentence := another_model(ServingSettings.parse(settings_in(config)).edits[0], layer, found):
        raise CorrigendaError(sentence)
    parallel = config.parallel_config
    for setting, what in (
        (getattr(parallel, "use_ubatching", False), "micro-batches (--enable-dbo)"),
        (
            parallel.data_parallel_size > 1 and getattr(config.model_config, "is_moe", False),
            "data parallelism of a mixture of experts (--data-parallel-size)",  # whose engines pass empty steps
        ),
        (getattr(parallel, "prefill_context_parallel_size", 1) > 1, "context parallelism"),
        (getattr(config, "kv_transfer_config", None) is not None, "key/value transfer (--kv-transfer-config)"),
    ):
        if setting:
            raise CorrigendaError(f"Edits are not served with {what}, under which they would be wrong: leave it out.")
