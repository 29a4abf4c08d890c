"""The modes that editing and answering run in, whatever the caller's are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from ..errors import CorrigendaError


@contextlib.contextmanager
def own_modes(model: nn.Module | None = None, *, gradients: bool = False, autocast: bool = False) -> Iterator[None]:
    """Within: evaluation mode, no gradient checkpointing, no inference mode, gradients as asked, ordinary defaults.

    What is made in inference mode can never be written to outside it, so no buffer may come to be there. autocast:
    leave it as it is; else it is off. All is the caller's again afterwards.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        if not autocast:
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_dtype() != torch.float32:
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float32)
        if torch.get_default_device() != torch.device("cpu"):
            stack.enter_context(torch.device("cpu"))
        if model is not None:
            stack.callback(_restore, _still(model))
        yield


def _still(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Turn training and gradient checkpointing off; which modules had which of them on."""
    changed = [
        (module, name)
        for module in model.modules()
        for name in ("training", "gradient_checkpointing")
        if vars(module).get(name) is True
    ]
    for module, name in changed:
        setattr(module, name, False)
    return changed


def _restore(changed: list[tuple[nn.Module, str]]) -> None:
    for module, name in changed:
        setattr(module, name, True)


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within: no gradient by the model's own weights."""
    needed = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in needed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in needed:
            parameter.requires_grad_(True)


def check_tensors(model: nn.Module) -> None:
    """Raise where a model's tensors take no gradient: made in inference mode, packed, or kept elsewhere."""
    for name, module in model.named_modules():
        if type(module).__module__.startswith("torch.ao.nn.quantized"):
            raise CorrigendaError(
                f'{type(model).__name__} cannot be edited: torch.ao quantised it ("{name}"), and no gradient comes '
                "through such layers; edit it before, or quantise it otherwise."
            )
    for tensors in (model.named_parameters(), model.named_buffers()):
        for name, tensor in tensors:
            if tensor.is_inference():
                raise CorrigendaError(
                    f"{type(model).__name__} was loaded within torch.inference_mode(), and no edit can be solved "
                    f'through such tensors ("{name}"): load the model outside it.'
                )
            if tensor.is_meta and not name.startswith("lm_head."):  # a head is only called
                raise CorrigendaError(
                    f'{type(model).__name__} cannot be edited: "{name}" is offloaded, and not where it is computed '
                    "with; load the model whole, in half precision or quantised where memory is short."
                )
