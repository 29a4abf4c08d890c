"""Cross-entropy at the head, read once: torch's own, loss and gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from corrigenda.editing.backbone.head import label_losses


def plain_head(vocabulary, width, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Linear(width, vocabulary, bias=False).to(dtype).requires_grad_(False)


def both(head, hidden, labels, scale):
    """Losses and the gradient of their weighted sum, by `label_losses` and by torch in float64."""
    found = []
    for losses_of, x in (
        (lambda x: label_losses(head, x, labels), hidden.clone()),
        (lambda x: F.cross_entropy(x @ head.weight.double().T, labels, reduction="none"), hidden.double()),
    ):
        x.requires_grad_()
        losses = losses_of(x)
        (gradient,) = torch.autograd.grad((losses * scale).sum(), x)
        found.append((losses.detach(), gradient))
    return found


@pytest.mark.parametrize(("labels", "size"), [(1, 1.0), (5, 1.0), (33, 40.0)])
def test_a_plain_head(labels, size):
    head = plain_head(100, 24)
    hidden, scale = size * torch.randn(labels, 24), torch.rand(labels)
    (losses, gradient), (exact, exact_gradient) = both(head, hidden, torch.randint(100, (labels,)), scale)
    torch.testing.assert_close(losses.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("labels", [9, 20])
def test_bf16(labels):
    head = plain_head(512, 64, torch.bfloat16)
    hidden = torch.randn(labels, 64, dtype=torch.bfloat16)
    (losses, gradient), (exact, exact_gradient) = both(head, hidden, torch.randint(512, (labels,)), torch.ones(labels))
    assert losses.dtype == torch.float32 and gradient.dtype == torch.bfloat16
    torch.testing.assert_close(losses.double(), exact, rtol=1e-2, atol=2e-2)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("kind", ["bias", "trained", "wrapped"])
def test_other_heads_take_their_own_way(kind):
    class Doubling(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    torch.manual_seed(0)
    head = (Doubling if kind == "wrapped" else nn.Linear)(8, 20, bias=kind == "bias")
    head.requires_grad_(kind == "trained")
    hidden, labels = torch.randn(3, 8, requires_grad=True), torch.randint(20, (3,))
    losses = label_losses(head, hidden, labels)
    assert torch.equal(losses, F.cross_entropy(head(hidden), labels, reduction="none"))
    if kind == "trained":
        losses.sum().backward()
        assert head.weight.grad is not None
