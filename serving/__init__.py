"""Edited layers in inference servers: continuous batching in transformers, and vLLM.

`Catalogue` says which edit answers a request, `ServedMemory` holds their rows, `Slots` tells the layer whose tokens a
packed batch holds. What ties them to a stack is apart: `ServedModel` for transformers, the package `vllm` for vLLM.
"""

from .batching import ServedModel
from .catalogue import Catalogue
from .errors import ServingError
from .memory import ServedMemory, edit_key
from .served_edits import Admission, Change, ServedEdit
from .settings import ServingSettings
from .slots import Slots

__all__ = [
    "Admission",
    "Catalogue",
    "Change",
    "ServedEdit",
    "ServedMemory",
    "ServedModel",
    "ServingError",
    "ServingSettings",
    "Slots",
    "edit_key",
]
