"""How to know a base model again: its vocabulary and a sample of its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..edits.tokenizer import Tokenizer
from .decoder import Decoder
from .parts import flat_entries, whole_tensor


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """SHA-256 of the vocabulary: two tokenizers with the same one cut the same ids."""
    entries = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(entries, ensure_ascii=True).encode()).hexdigest()


@torch.no_grad()
def weight_sample(decoder: Decoder, layer: int, count: int = 512) -> Tensor:
    """fp32 `[3 * count]`: weights at fixed places of the embedding, the edited layer and the final norm.

    What tells one checkpoint from another, and the same one in another precision from both.
    """
    found = [p for p in decoder.layers[layer].parameters() if p.is_floating_point()]
    norms = [p for p in found if p.dim() == 1]
    # Norms without weights (OLMo's) tell nothing: then the layer's matrices do.
    of_layer = [whole_tensor(p).reshape(-1) for p in norms or found]
    final = getattr(decoder.body.norm, "weight", None)
    embedding = decoder.model.get_input_embeddings().weight
    parts = (embedding, torch.cat(of_layer) if final is None else final, torch.cat(of_layer))
    return torch.cat([at_places(tensor, count) for tensor in parts])


def at_places(tensor: Tensor, count: int) -> Tensor:
    """fp32 `[count]`: a tensor at evenly spread places, on the CPU."""
    places = torch.linspace(0, tensor.numel() - 1, count, dtype=torch.float64, device="cpu").long()
    return flat_entries(tensor.detach(), places.to(tensor.device)).float().cpu()


@torch.no_grad()
def adapter_sample(model: Any, count: int = 64) -> list[float]:
    """Weights at fixed places of the adapters that act in a model, as PEFT puts them beside its layers; [] of none."""
    found = []
    for module in model.modules():
        if not type(module).__module__.startswith("peft.tuners.") or getattr(module, "disable_adapters", False):
            continue
        acting = getattr(module, "active_adapters", ())
        for name, parameter in module.named_parameters():
            parts = name.split(".")
            if parts[0] != "base_layer" and not set(parts).isdisjoint(acting) and parameter.is_floating_point():
                found.append(parameter.detach().reshape(-1).float().cpu())
    return at_places(torch.cat(found), count).tolist() if found else []


def another_adapter(edits: object, recorded: Mapping[str, Any], found: list[float]) -> str | None:
    """What a user is told where edits were written beside other adapters than a model has; None where they were not.

    recorded: what is kept of the model they were written for; earlier versions kept nothing of adapters.
    """
    if "adapter" not in recorded:
        return None
    before, now = (torch.tensor(one, dtype=torch.float32, device="cpu") for one in (recorded["adapter"], found))
    if before.shape == now.shape and (not len(now) or same_part(before, now)):
        return None
    there, here = ("an adapter" if len(one) else "none" for one in (before, now))
    told = "another adapter than this model's" if there == here else f"{there} in the model, and there is {here} here"
    return f"The edits in {edits} were written beside {told}: unless it is merged, their answers may not hold."


def same_weights(saved: Tensor, found: Tensor) -> bool:
    """Whether two samples are of one checkpoint: half precision moves a weight by 0.4 % at most.

    Part by part: a norm's weights are near 1, and would drown what two embeddings differ by.
    """
    pairs = zip(saved.chunk(3), found.chunk(3))
    return saved.shape == found.shape and all(same_part(a, b) for a, b in pairs)


def same_part(saved: Tensor, found: Tensor) -> bool:
    """The same of one tensor's places."""
    return bool((saved - found).norm() <= 0.02 * saved.norm())


def another_model(edits: object, recorded: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """Why `edits`, as a user calls them, are for another model than this one: a sentence; None where they are not.

    recorded: what is kept of the model they were written for. found: as much of this one as is known here. Both by
    "layers", "widths" (of the edited layer), "tokenizer" (`tokenizer_digest`) and "weights" (`weight_sample`).
    """
    names = {"layers": "its layers", "widths": "its FFN widths"}
    for name in names:
        if name in found and recorded[name] != found[name]:
            return f"The edits in {edits} are for another model: {names[name]} are {recorded[name]}, not {found[name]}."
    if "tokenizer" in found and recorded["tokenizer"] != found["tokenizer"]:
        return f"The edits in {edits} are for another model: its tokenizer differs."
    if "weights" in found and (recorded["weights"] is None or not same_weights(recorded["weights"], found["weights"])):
        return f"The edits in {edits} are for another model: its weights differ."
    return None
