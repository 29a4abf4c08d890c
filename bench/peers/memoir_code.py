"""What MEMOIR's published code is given to run on a CPU, and how the model that it leaves is asked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from plain_scores import Asking

from corrigenda.editing.backbone.background import background_prompts


@contextlib.contextmanager
def without_gpu() -> Iterator[None]:
    """Within: a tensor that is sent to a GPU stays. MEMOIR's code names one wherever it runs."""
    to = torch.Tensor.to

    def here(value: Any) -> Any:
        return "cpu" if isinstance(value, (str, torch.device)) and str(value).startswith("cuda") else value

    def stay(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return to(tensor, *map(here, args), **{name: here(value) for name, value in kwargs.items()})

    torch.Tensor.to = stay
    try:
        yield
    finally:
        del torch.Tensor.to  # the inherited one is back


def give_background(hparams: Any, model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the background features of MEMOIR's code, which it would load of a download: of our prompts."""
    found: list[torch.Tensor] = []
    layer = model.get_submodule(hparams.inner_params[0].replace("[", ".").replace("]", "").removesuffix(".weight"))
    hook = layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0][0].mean(0)))
    with torch.no_grad():
        for text in background_prompts()[:100]:
            model(**tokenizer(text, return_tensors="pt"))
    hook.remove()
    hparams.dir_background_features = str(folder / "background.pt")
    torch.save(torch.stack(found), hparams.dir_background_features)


def asking_memoir(editor: Any, plain: Asking) -> Asking:
    """MEMOIR's code is told where the prompt ends; what it generates it reads anew at each token, for a step of a
    cache would be taken for a prompt of its own."""

    def logits(ids: torch.Tensor, prompt: int) -> torch.Tensor:
        return editor(input_ids=ids, use_cache=False, last_prompt_token_loc_inference=torch.tensor([prompt - 1])).logits

    def generate(ids: torch.Tensor, limit: int) -> torch.Tensor:
        adapter = editor.get_adapter_layer()
        adapter.last_prompt_token_loc_inference = torch.tensor([ids.shape[1] - 1])
        editor.model.generation_config.use_cache = False
        try:
            return plain.generate(ids, limit)
        finally:
            del adapter.last_prompt_token_loc_inference

    return Asking(logits, generate)
