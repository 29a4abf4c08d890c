"""Cross-entropy at the model's head, in one reading of its weight: SmolLM2's is 113 MB, LLaMA-3-8B's 2.1 GB in fp32."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import ops


def label_losses(head: nn.Module, hidden: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, fp32 `[labels]`, of the labels given normed hidden states `[labels, d]`.

    A plain linear head on a CPU is read once for the loss and its gradient; others take torch's way, which reads it
    twice and keeps the logits. A GPU is not held up by that: a dozen labels' two readings take it under a millisecond.
    """
    plain = type(head) is nn.Linear and head.bias is None and type(head.weight.data) is Tensor
    plain = plain and head.weight.is_floating_point()
    here = hidden.device.type == head.weight.device.type == "cpu"  # an offloaded head's weight is on no device
    if plain and here and hidden.requires_grad and not head.weight.requires_grad:
        losses, _ = ops.label_losses(hidden, head.weight, labels)
        return losses.float()
    return F.cross_entropy(head(hidden).float(), labels, reduction="none")
