"""Gradients of masked_linear in Triton: each program owns a tile of one output, so nothing is added atomically."""

import torch
import triton
import triton.language as tl

from . import tuning
from .triton_helpers import finite, multiply_add


@triton.jit
def _chosen(masks_ptr, route_ptr, token, column, tokens, width, words):
    """Whether the mask of each token [BT] has the bit of each column [BI]: [BT, BI], False where unrouted.

    Of masks [entries, words] and route [tokens].
    """
    entry = tl.load(route_ptr + token, mask=token < tokens, other=-1).to(tl.int64)
    inside = (entry >= 0)[:, None] & (column < width)[None, :]
    word = tl.load(masks_ptr + entry[:, None] * words + (column // 32)[None, :], mask=inside, other=0)
    return (word >> (column % 32)[None, :]) & 1 == 1


@triton.jit
def _input_kernel(
    grad_ptr,  # [tokens, outputs]
    memory_ptr,  # [width, outputs]
    masks_ptr,  # [entries, words] int32
    route_ptr,  # [tokens] int32
    dx_ptr,  # [tokens, width], written
    tokens, width, outputs, words,
    BLOCK_T: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dx [tokens, D] = grad @ memory.T at the set bits, 0 elsewhere: program (columns of x, tokens)."""
    column = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    token = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    bit = _chosen(masks_ptr, route_ptr, token, column, tokens, width, words)  # [BT, BI]
    total = tl.zeros([BLOCK_T, BLOCK_I], tl.float32)
    if tl.max(bit.to(tl.int32)) == 1:
        read = tl.max(bit.to(tl.int32), 0) == 1
        for start in range(0, outputs, BLOCK_K):
            output = start + tl.arange(0, BLOCK_K)
            reached = (output < outputs)[None, :]
            upstream = tl.load(
                grad_ptr + token.to(tl.int64)[:, None] * outputs + output[None, :],
                mask=(token < tokens)[:, None] & reached,
                other=0.0,
            )  # [BT, BK]
            part = tl.load(
                memory_ptr + column.to(tl.int64)[:, None] * outputs + output[None, :],
                mask=read[:, None] & reached,
                other=0.0,
            )  # [BI, BK]
            total = multiply_add(upstream, tl.trans(part), total)
    inside = (token < tokens)[:, None] & (column < width)[None, :]
    tl.store(dx_ptr + token.to(tl.int64)[:, None] * width + column[None, :], tl.where(bit, total, 0.0), mask=inside)


@triton.jit
def _memory_kernel(
    grad_ptr,  # [tokens, outputs]
    x_ptr,  # [tokens, width], rows of `stride`
    masks_ptr,  # [entries, words] int32
    route_ptr,  # [tokens] int32
    dmemory_ptr,  # [width, outputs], written
    tokens, width, outputs, words, stride,
    BLOCK_T: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """dmemory [D, d] = masked x.T @ grad: program (columns of d, rows of D); blocks of unrouted tokens are skipped."""
    output = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    column = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    reached = (output < outputs)[None, :]
    total = tl.zeros([BLOCK_I, BLOCK_O], tl.float32)
    for start in range(0, tokens, BLOCK_T):
        token = start + tl.arange(0, BLOCK_T)
        bit = _chosen(masks_ptr, route_ptr, token, column, tokens, width, words)  # [BT, BI]
        if tl.max(bit.to(tl.int32)) == 1:
            used = tl.max(bit.to(tl.int32), 1) == 1
            share = tl.load(x_ptr + token.to(tl.int64)[:, None] * stride + column[None, :], mask=bit, other=0.0)
            upstream = tl.load(
                grad_ptr + token.to(tl.int64)[:, None] * outputs + output[None, :],
                mask=used[:, None] & reached,
                other=0.0,
            )  # [BT, BO]
            total = multiply_add(tl.trans(share), upstream, total)
    if not finite(total):
        # A gradient that is not finite has met rows that its token's mask leaves out: token by token, then.
        total = tl.zeros([BLOCK_I, BLOCK_O], tl.float32)
        for t in range(0, tokens):
            entry = tl.load(route_ptr + t).to(tl.int64)
            if entry >= 0:
                word = tl.load(masks_ptr + entry * words + column // 32, mask=column < width, other=0)
                bit = (word >> (column % 32)) & 1 == 1
                at = tl.cast(t, tl.int64)
                share = tl.load(x_ptr + at * stride + column, mask=bit, other=0.0).to(tl.float32)
                upstream = tl.load(grad_ptr + at * outputs + output, mask=output < outputs, other=0.0).to(tl.float32)
                total += tl.where(bit[:, None], share[:, None] * upstream[None, :], 0.0)
    inside = (column < width)[:, None] & reached
    tl.store(dmemory_ptr + column.to(tl.int64)[:, None] * outputs + output[None, :], total, mask=inside)


def masked_linear_backward(grad, x, memory, masks, route, needed):
    (tokens, outputs), width, words = grad.shape, x.shape[1], masks.shape[1]
    dx, dmemory = (
        torch.empty(like.shape if need else (0, 0), dtype=like.dtype, device=like.device)
        for like, need in zip((x, memory), needed)
    )
    grad, memory, masks, route = grad.contiguous(), memory.contiguous(), masks.contiguous(), route.contiguous()
    if dx.numel():
        config = tuning.config("masked_linear", "input_gradient", x.device)
        _input_kernel[(triton.cdiv(width, config["BLOCK_I"]), triton.cdiv(tokens, config["BLOCK_T"]))](
            grad, memory, masks, route, dx, tokens, width, outputs, words, **config
        )
    if dmemory.numel():
        x = x if x.stride(1) == 1 else x.contiguous()
        config = tuning.config("masked_linear", "memory_gradient", x.device)
        _memory_kernel[(triton.cdiv(outputs, config["BLOCK_O"]), triton.cdiv(width, config["BLOCK_I"]))](
            grad, x, masks, route, dmemory, tokens, width, outputs, words, x.stride(0), **config
        )
    return dx, dmemory
