"""Corrigenda: corrections for frozen language models, written in a stream and removable again."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import AssociativeConfig, EditingConfig, MemoirConfig, WiseConfig
    from .edits import Edit, Locality
    from .errors import CorrigendaError
    from .evaluate import Evaluator, Scores
    from .live import LiveEditor
    from .loading import load_edits
    from .model import Answer, EditedModel, Progress, Provenance
    from .template import Template

# Loaded when first asked for: torch and transformers take seconds, and `corrigenda --help` needs neither.
_HOME = {
    "Answer": "model",
    "AssociativeConfig": "config",
    "CorrigendaError": "errors",
    "Edit": "edits",
    "EditedModel": "model",
    "EditingConfig": "config",
    "Evaluator": "evaluate",
    "LiveEditor": "live",
    "Locality": "edits",
    "MemoirConfig": "config",
    "Progress": "model",
    "Provenance": "model",
    "Scores": "evaluate",
    "Template": "template",
    "WiseConfig": "config",
    "load_edits": "loading",
}

__all__ = [
    "Answer",
    "AssociativeConfig",
    "CorrigendaError",
    "Edit",
    "EditedModel",
    "EditingConfig",
    "Evaluator",
    "LiveEditor",
    "Locality",
    "MemoirConfig",
    "Progress",
    "Provenance",
    "Scores",
    "Template",
    "WiseConfig",
    "load_edits",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
