"""Low-rank adapters of linear maps, learnt by PEFT: what LoRA, StableKE and LTE have in common."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..backbone.decoder import Decoder
from ..backbone.frozen import Row
from ..backbone.told import row_losses
from ..errors import CorrigendaError

_NAME = "corrigenda"


class Pair(NamedTuple):
    """One adapter: a map's output gets `x down^T up` more. down `[rank, D]`, up `[rank, d]` with the scale in it."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True)
class Training:
    """How adapters are learnt: `batches` of `batch_size` rows in turn, one step of AdamW each, without weight decay.

    schedule: "constant", or "cosine" with a warm-up over the first 3 % of the steps (as LTE)
    stop_loss: learning ends when a batch's loss is at most this
    """

    rank: int
    alpha: float
    dropout: float
    learning_rate: float
    steps: int
    batch_size: int
    seed: int
    schedule: str = "constant"
    stop_loss: float = 0.0


def target_modules(decoder: Decoder, names: str) -> dict[str, nn.Module]:
    """The linear maps of every layer that `names` lists ("q_proj,v_proj"), as "<layer>.<path>"."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    found: dict[str, nn.Module] = {}
    for number, layer in enumerate(decoder.layers):
        for path, module in layer.named_modules():
            if path.rpartition(".")[2] in wanted:
                found[f"{number}.{path}"] = module
    missing = [name for name in wanted if not any(path.endswith(f".{name}") for path in found)]
    if missing or not wanted:
        raise CorrigendaError(f"This model's layers have no linear map called {', '.join(missing) or 'nothing'!r}.")
    return found


def learn_adapters(
    decoder: Decoder, modules: Mapping[str, nn.Module], rows: Sequence[Row], how: Training
) -> tuple[dict[str, Pair], float, int]:
    """Adapters of `modules` that make the labels of rows likely; the last batch's loss before its step, and the steps.

    The model is as it was afterwards. What hooks add to the maps' outputs meanwhile is part of the model that is
    adapted.
    """
    peft = _peft()
    model = decoder.model
    if any(isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer) for module in model.modules()):
        raise CorrigendaError(
            "The model has PEFT's adapters already, in whose place others would be learnt: merge them into it first "
            "(`merge_and_unload`)."
        )
    names = {id(module): name for name, module in model.named_modules()}
    chosen = "|".join(re.escape(names[id(module)]) for module in modules.values())
    config = peft.LoraConfig(
        r=how.rank, lora_alpha=how.alpha, lora_dropout=how.dropout, target_modules=chosen, bias="none"
    )
    before = dict(vars(model))
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(how.seed)
        tuner = peft.tuners.lora.LoraModel(model, {_NAME: config}, _NAME)
        try:
            layers = {site: model.get_submodule(names[id(module)]) for site, module in modules.items()}
            loss, steps = _train(decoder, layers, rows, how)
            pairs = {site: _pair(layer) for site, layer in layers.items()}
        finally:
            tuner.unload()
            for name in vars(model).keys() - before.keys():  # what PEFT notes on a model that it has adapted
                delattr(model, name)
    return pairs, loss, steps


def _train(decoder: Decoder, layers: Mapping[str, Any], rows: Sequence[Row], how: Training) -> tuple[float, int]:
    parameters = []
    for layer in layers.values():
        layer.train()  # its dropout alone
        for part in (layer.lora_A, layer.lora_B):
            parameters.append(part[_NAME].weight.requires_grad_())
    optimizer = torch.optim.AdamW(parameters, lr=how.learning_rate, weight_decay=0.0)
    warm = max(1, round(0.03 * how.steps))

    def pace(step: int) -> float:
        if how.schedule == "constant":
            return 1.0
        if step < warm:
            return (step + 1) / warm
        share = torch.pi * (step - warm) / max(1, how.steps - warm)
        return 0.5 * (1 + float(torch.cos(torch.tensor(share, dtype=torch.float64, device="cpu"))))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, pace)
    loss, batches = float("inf"), _batches(rows, how)
    for step in range(how.steps):
        losses, _ = row_losses(decoder, next(batches))
        loss = float(losses.detach().mean())
        if loss <= how.stop_loss:
            return loss, step
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        scheduler.step()
    return loss, how.steps


def _batches(rows: Sequence[Row], how: Training) -> Iterator[list[Row]]:
    """Endless; every row once in each round, in an order of its own."""
    generator = torch.Generator().manual_seed(how.seed)
    while True:
        order = torch.randperm(len(rows), generator=generator, dtype=torch.int64, device="cpu").tolist()
        for start in range(0, len(rows), how.batch_size):
            yield [rows[i] for i in order[start : start + how.batch_size]]


def _pair(layer: Any) -> Pair:
    down = layer.lora_A[_NAME].weight.detach().clone()
    return Pair(down, (layer.scaling[_NAME] * layer.lora_B[_NAME].weight.detach()).T.contiguous())


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise CorrigendaError(
            "This method learns adapters by PEFT, which is not installed: pip install peft."
        ) from None
    return peft
