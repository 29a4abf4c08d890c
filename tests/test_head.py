"""Cross-entropy at the head in blocks of the vocabulary: torch's own, loss and gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from corrigenda.editing import head as heads
from corrigenda.editing.head import label_losses


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


@pytest.mark.parametrize("block_rows", [1, 7, 64, 1000])
@pytest.mark.parametrize(("labels", "size"), [(1, 1.0), (5, 1.0), (33, 40.0)])
def test_blocks_do_not_change_loss_or_gradient(monkeypatch, block_rows, labels, size):
    head = plain_head(100, 24)
    monkeypatch.setattr(heads, "_BLOCK_BYTES", block_rows * 24 * 4)
    hidden, scale = size * torch.randn(labels, 24), torch.rand(labels)
    (losses, gradient), (exact, exact_gradient) = both(head, hidden, torch.randint(100, (labels,)), scale)
    torch.testing.assert_close(losses.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-5, atol=1e-6)


def test_logits_that_only_their_difference_keeps_finite(monkeypatch):
    head = plain_head(6, 6)
    head.weight.copy_(torch.eye(6))
    monkeypatch.setattr(heads, "_BLOCK_BYTES", 2 * 6 * 4)
    hidden = torch.tensor([[0.0, 1e4, -1e4, 3.0, 1e4, 9999.0], [500.0, 1.0, 2.0, 3.0, 4.0, 5.0]])
    (losses, gradient), (exact, exact_gradient) = both(head, hidden, torch.tensor([5, 1]), torch.ones(2))
    torch.testing.assert_close(losses.double(), exact, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-4, atol=1e-5)


def test_bf16(monkeypatch):
    head = plain_head(512, 64, torch.bfloat16)
    monkeypatch.setattr(heads, "_BLOCK_BYTES", 100 * 64 * 2)
    hidden = torch.randn(9, 64, dtype=torch.bfloat16)
    (losses, gradient), (exact, exact_gradient) = both(head, hidden, torch.randint(512, (9,)), torch.ones(9))
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
