"""What is asked of a causal language model of transformers: the type checker holds the code to it."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn


class CausalModel(Protocol):
    """A model that generates; `config` and `generation_config` are transformers' own, whose fields differ by model."""

    config: Any
    generation_config: Any

    def __call__(self, *inputs: Any, **options: Any) -> Any: ...

    def generate(self, *inputs: Any, **options: Any) -> Any: ...

    def forward(self, *inputs: Any, **options: Any) -> Any: ...

    def prepare_inputs_for_generation(self, *inputs: Any, **options: Any) -> dict[str, Any]: ...

    def _get_logits_processor(self, *inputs: Any, **options: Any) -> Any: ...

    def get_input_embeddings(self) -> nn.Embedding: ...
