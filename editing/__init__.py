"""Corrigenda: corrections for frozen language models, written in a stream and removable again."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .edits.edit import Edit, Locality
    from .edits.loading import load_edits
    from .edits.template import Template
    from .errors import CorrigendaError
    from .methods.associative.config import AssociativeConfig
    from .methods.config import EditingConfig
    from .methods.memoir.config import MemoirConfig
    from .methods.wise.config import WiseConfig
    from .model.answers import Answer, Progress, Provenance
    from .model.edited_model import EditedModel
    from .model.live import LiveEditor
    from .scores.evaluate import Evaluator, Scores

# Loaded when first asked for: torch and transformers take seconds, and `corrigenda --help` needs neither.
_HOME = {
    "Answer": "model.answers",
    "AssociativeConfig": "methods.associative.config",
    "CorrigendaError": "errors",
    "Edit": "edits.edit",
    "EditedModel": "model.edited_model",
    "EditingConfig": "methods.config",
    "Evaluator": "scores.evaluate",
    "LiveEditor": "model.live",
    "Locality": "edits.edit",
    "MemoirConfig": "methods.memoir.config",
    "Progress": "model.answers",
    "Provenance": "model.answers",
    "Scores": "scores.evaluate",
    "Template": "edits.template",
    "WiseConfig": "methods.wise.config",
    "as_folder": "backbone.loading",
    "load_base": "backbone.loading",
    "load_edits": "edits.loading",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
