"""`down_proj` with a memory beside it, as vLLM builds its models."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import Tensor
from vllm.config import get_current_vllm_config_or_none
from vllm.distributed import tensor_model_parallel_all_gather
from vllm.model_executor.layers.linear import LinearMethodBase, RowParallelLinear

from ...editing.model.layer import Site, edited_
from .keys import LAYER, settings_in
from .worker import WorkerEdits

_DOWN_PROJ = re.compile(r"(?:^|\.)layers\.(\d+)\.mlp\.down_proj$")


class ShardedSite(Site):
    """Where each of several workers holds a part of the layer's input.

    All parts are gathered, for keys and their norms are of the whole input; one worker adds the residual to its partial
    output, which the sum over workers then holds once.
    """

    rank = 0
    size = 1
    edits: WorkerEdits | None = None

    def add_(self, out: Tensor, x: Tensor) -> None:
        """What raises here loses the edited requests of the pass (`lost`): their rows alone are written."""
        try:
            self._add_(out, x)
        except Exception as error:
            if self.edits is None:
                raise
            self.edits.error = error

    def _add_(self, out: Tensor, x: Tensor) -> None:
        if self.size == 1 or not self.context.active:
            return super().add_(out, x)
        # Also where nothing is routed, as long as passes are captured: all workers must take the same steps.
        whole = tensor_model_parallel_all_gather(x.contiguous(), dim=-1)
        if self.rank == 0:
            super().add_(out, whole)


def with_edits(method: LinearMethodBase, site: Site) -> LinearMethodBase:
    """The layer's own way to compute, whatever it is, and the memory's residual.

    Here and not in `forward`, for LoRA's wrapper of the layer calls `quant_method.apply` alone. It stays an object of
    its class, by which loaders know how to fill the layer; a copy, for layers may share one.
    """
    edited = copy.copy(method)
    inner = edited.apply

    def apply(layer: torch.nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        out = inner(layer, x, bias)
        edited_(out, x, site.name)
        return out

    edited.site, edited.apply = site, apply
    return edited


class EditedRowParallelLinear(RowParallelLinear):
    """Every `RowParallelLinear` is made of this class; the one that edits are for gets a memory."""

    quant_method: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = get_current_vllm_config_or_none()
        match = _DOWN_PROJ.search(self.prefix)
        if settings_in(config) is None or match is None:
            return
        wanted = config.additional_config[LAYER]
        # A draft model's layer has the same name, but seldom the same widths.
        if int(match[1]) != wanted["layer"] or [self.input_size, self.output_size] != wanted["widths"]:
            return
        self.corrigenda = WorkerEdits(config)
        site = ShardedSite(self.prefix, self.corrigenda.memory.banks, self.corrigenda.context)
        site.rank, site.size, site.edits = self.tp_rank, self.tp_size, self.corrigenda
        self.quant_method = with_edits(self.quant_method, site)
        # The residual reads the input as it is, not as a fused activation quantised it.
        self.requires_unquantized_input = True


def register() -> None:
    RowParallelLinear.register_oot(EditedRowParallelLinear)
