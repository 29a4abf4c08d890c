"""The routers that find an edit by a request's text: what the configurations of several methods name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..edits.tokenizer import Tokenizer
from ..routers.meaning.router import MeaningRouter
from ..routers.router import EditRouter
from ..routers.tokens import TokenRouter


def text_router(config: Any, tokenizer: Tokenizer, background: Sequence[str], device: torch.device | str) -> EditRouter:
    """The one that a configuration's `router` names, with its `encoder`, `threshold` and `decoys`; without edits."""
    threshold = "auto" if config.threshold is None else config.threshold
    if config.router == "meaning":
        decoys = getattr(config, "decoys", "").splitlines()
        return MeaningRouter(tokenizer, background, encoder=config.encoder, decoys=decoys, threshold=threshold)
    return TokenRouter(tokenizer, background, threshold=threshold, device=device)
