"""Gradients, outside the ops: each Function calls a forward op and a backward op.

Outside, because autograd registered on an op is paid on every call (10 us against 4), also where no gradient
is wanted. `ops.py` comes here only if grad mode is on and an input requires grad.
"""

import torch
from torch.autograd.function import once_differentiable

ops = torch.ops.corrigenda


def wanted(*tensors):
    """Whether a gradient is to be recorded for any of `tensors`."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


class MaskedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, x, memory, masks, route):
        ctx.save_for_backward(x, memory, masks, route)
        return ops.masked_linear.default(y, x, memory, masks, route)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        needed = list(ctx.needs_input_grad[1:3])
        dx = dmemory = None
        if any(needed):
            dx, dmemory = ops.masked_linear_backward.default(grad, *ctx.saved_tensors, needed)
        return grad, dx if needed[0] else None, dmemory if needed[1] else None, None, None


class AssociativeRead(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, x, first, keys, values, pages, rows, route, background, beta):
        ctx.save_for_backward(x, first, keys, values, pages, rows, route, background)
        ctx.beta = beta
        return ops.associative_read.default(y, x, first, keys, values, pages, rows, route, background, beta, None)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        needed = [ctx.needs_input_grad[i] for i in (1, 3, 4)]
        dx = dkeys = dvalues = None
        if any(needed):
            dx, dkeys, dvalues = ops.associative_read_backward.default(grad, *ctx.saved_tensors, ctx.beta, needed)
        dx, dkeys, dvalues = (d if need else None for d, need in zip((dx, dkeys, dvalues), needed))
        return grad, dx, None, dkeys, dvalues, None, None, None, None, None


class LabelLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels):
        losses, gradient = ops.label_losses.default(hidden, weight, labels)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(gradient)
        return losses, gradient

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        (gradient,) = ctx.saved_tensors
        return (grad[:, None] * gradient).to(gradient.dtype), None, None
