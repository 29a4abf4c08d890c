"""Corrigenda: corrections for frozen language models, written in a stream and removable again."""

from .config import AssociativeConfig, EditingConfig, MemoirConfig
from .edits import Edit, Locality
from .errors import CorrigendaError
from .evaluate import Evaluator, Scores
from .loading import load_edits
from .model import Answer, EditedModel, Progress
from .template import Template

__all__ = [
    "Answer",
    "AssociativeConfig",
    "CorrigendaError",
    "Edit",
    "EditedModel",
    "EditingConfig",
    "Evaluator",
    "Locality",
    "MemoirConfig",
    "Progress",
    "Scores",
    "Template",
    "load_edits",
]
