"""Retrieval in the prompt: what people compare editors with."""

from __future__ import annotations

from ..prompted import Prompted
from .config import RagConfig


class Rag(Prompted):
    """The text of the edit that a request is about, before its question; the model is the base model throughout."""

    config: RagConfig
