"""Methods whose memory answers every request, as published, unless a router by text is put before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..backbone.background import background_prompts
from ..backbone.decoder import Decoder
from ..edits.prompts import PromptFormat
from ..edits.tokenizer import Tokenizer
from ..routers.always import AlwaysOn
from ..routers.router import EditRouter
from .method import Method
from .text_routers import text_router
from .weights.config import WeightsConfig


class GatedMethod(Method):
    """One memory for all edits: always on, and then no route names an edit; or gated, and then each does."""

    keeps_unsolved = True

    def __init__(self, decoder: Decoder, prompts: PromptFormat, config: WeightsConfig) -> None:
        super().__init__(decoder, prompts, config)
        self.names_edits = config.routed_by_text  # type: ignore[misc] # of a gate's routes, not of always-on ones
        background = background_prompts() if config.routed_by_text else []
        self.router = self.text_router(config, prompts.tokenizer, background, self.device)

    @staticmethod
    def text_router(
        config: Any, tokenizer: Tokenizer, background: Sequence[str], device: torch.device | str
    ) -> EditRouter:
        if isinstance(config, WeightsConfig) and config.routed_by_text:
            return text_router(config, tokenizer, background, device)
        return AlwaysOn(device)

    def memory_name(self, route: int) -> str | None:
        return "changed weights" if route >= 0 and not self.names_edits else None

    def holds(self, route: int, edit: int) -> bool:
        return route == edit if self.names_edits else route >= 0
