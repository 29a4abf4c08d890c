"""What other libraries put around a causal language model, and the model inside."""

from __future__ import annotations

from typing import Any

from ..errors import CorrigendaError


def unwrapped(model: Any) -> Any:
    """The causal language model inside `torch.compile`'s and PEFT's wrappers: what edits are put on.

    Layers that an adapter has made of the model's own stay where they are, adapter and all. Raises where a wrapper
    gives the model more tokens than its prompt has, or runs parts of it elsewhere.
    """
    while True:
        name = type(model).__name__
        if name == "OptimizedModule":
            model = model._orig_mod
        elif type(model).__module__.startswith("peft.") and hasattr(model, "get_base_model"):
            if any(config.is_prompt_learning for config in model.peft_config.values()):
                raise CorrigendaError(
                    f"{name} cannot be edited: its adapter puts virtual tokens before every prompt, by which an edit's "
                    "place in it shifts; merge it, or use an adapter of the weights, as LoRA is."
                )
            model = model.get_base_model()
        elif name in ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel"):
            raise CorrigendaError(
                f"{name} cannot be edited: its forwards run on copies or parts of the model; wrap the model inside it."
            )
        else:
            return model
