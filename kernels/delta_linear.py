"""delta_linear in Triton: the product by tiles, its inner dimension split where tokens are few; distances; scores.

The second launch adds the parts of the product in the order of the splits and measures each token on the way, so that
the side output is read no more than once.
"""

import torch
import triton
import triton.language as tl

from . import tuning
from .triton_helpers import multiply_add

FEW_TOKENS = 16  # up to so many, delta is read once by tiles of 16 tokens; beyond, tiles of 64


@triton.jit
def _product_kernel(
    x_ptr,  # [tokens, width], rows of `stride`
    delta_ptr,  # [width, outputs]
    partial_ptr,  # [splits, tokens, outputs] float32, written
    tokens, width, outputs, chunk, stride,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """x @ delta over `chunk` of the inner dimension, into [splits, tokens, d]: program (columns, splits, tokens)."""
    column = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    split = tl.program_id(1).to(tl.int64)
    token = tl.program_id(2) * BLOCK_T + tl.arange(0, BLOCK_T)
    present, reached = (token < tokens)[:, None], (column < outputs)[None, :]
    total = tl.zeros([BLOCK_T, BLOCK_O], tl.float32)
    first = tl.program_id(1) * chunk
    for start in range(first, tl.minimum(first + chunk, width), BLOCK_K):
        row = start + tl.arange(0, BLOCK_K)
        inside = row < width
        feature = tl.load(
            x_ptr + token.to(tl.int64)[:, None] * stride + row[None, :], mask=present & inside[None, :], other=0.0
        )  # [BT, BK]
        part = tl.load(
            delta_ptr + row.to(tl.int64)[:, None] * outputs + column[None, :], mask=inside[:, None] & reached, other=0.0
        )  # [BK, BO]
        total = multiply_add(feature, part, total)
    at = (split * tokens + token[:, None]) * outputs + column[None, :]
    tl.store(partial_ptr + at, total, mask=present & reached)


@triton.jit
def _silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def _distance_kernel(
    partial_ptr,  # [splits, tokens, outputs] float32
    base_ptr,  # [tokens, outputs]
    side_ptr,  # [tokens, outputs] float32, written where there are several splits
    distance_ptr,  # [tokens] float32, written
    tokens, outputs, splits,
    ACTIVATED: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """One token: its side output from the parts, where there are several, and how far that moves its output."""
    token = tl.program_id(0).to(tl.int64)
    square = tl.zeros([BLOCK_O], tl.float32)
    for start in range(0, outputs, BLOCK_O):
        column = start + tl.arange(0, BLOCK_O)
        reached = column < outputs
        at = token * outputs + column
        change = tl.load(partial_ptr + at, mask=reached, other=0.0)
        if splits > 1:
            for split in range(1, splits):
                part = partial_ptr + tl.cast(split, tl.int64) * tokens * outputs
                change += tl.load(part + at, mask=reached, other=0.0)
            tl.store(side_ptr + at, change, mask=reached)
        if ACTIVATED:
            frozen = tl.load(base_ptr + at, mask=reached, other=0.0).to(tl.float32)
            change = _silu(frozen + change) - _silu(frozen)
        square += change * change
    tl.store(distance_ptr + token, tl.sqrt(tl.sum(square, 0)))


@triton.jit
def _score_kernel(
    distance_ptr,  # [tokens] float32
    offsets_ptr,  # [sequences + 1] int32
    weight_ptr,  # [tokens] float32, or None
    score_ptr,  # [sequences] float32, written
    tokens, longest,
    BLOCK_T: tl.constexpr,
):  # fmt: skip
    """One sequence: the mean of its tokens' distances by weight, or the largest where they are more than `longest`."""
    sequence = tl.program_id(0)
    begin, end = tl.load(offsets_ptr + sequence), tl.load(offsets_ptr + sequence + 1)
    begin, end = tl.maximum(begin, 0), tl.minimum(end, tokens)
    total = tl.zeros([BLOCK_T], tl.float32)
    mass = tl.zeros([BLOCK_T], tl.float32)
    largest = tl.zeros([BLOCK_T], tl.float32)
    count = tl.zeros([BLOCK_T], tl.int32)
    for start in range(begin, end, BLOCK_T):
        token = start + tl.arange(0, BLOCK_T)
        share = (token < end).to(tl.float32)
        if weight_ptr is not None:
            share = tl.load(weight_ptr + token, mask=token < end, other=0.0)
        counted = share > 0
        far = tl.load(distance_ptr + token, mask=counted, other=0.0)
        total += share * far
        mass += tl.where(counted, share, 0.0)
        largest = tl.maximum(largest, far)
        count += counted.to(tl.int32)
    total, mass, largest, count = tl.sum(total, 0), tl.sum(mass, 0), tl.max(largest, 0), tl.sum(count, 0)
    mean = tl.where(count > 0, total / tl.where(count > 0, mass, 1.0), 0.0)
    # A maximum passes over NaN, a sum does not.
    tl.store(score_ptr + sequence, tl.where((count > longest) & (total == total), largest, mean))


def delta_linear(x, base, delta, offsets, weight, activated, longest):
    (tokens, width), outputs, sequences = x.shape, delta.shape[1], offsets.shape[0] - 1
    side, distance, score = (
        torch.empty(shape, dtype=torch.float32, device=x.device) for shape in ((tokens, outputs), tokens, sequences)
    )
    x = x if x.stride(1) == 1 else x.contiguous()
    base, delta, offsets = base.contiguous(), delta.contiguous(), offsets.contiguous()
    weight = None if weight is None else weight.contiguous()
    if tokens:
        variant = "few" if tokens <= FEW_TOKENS else "many"
        if not x.dtype == delta.dtype != torch.float32:
            variant += "_float32"
        config = tuning.config("delta_linear", variant, x.device)
        columns, blocks = triton.cdiv(outputs, config["BLOCK_O"]), triton.cdiv(tokens, config["BLOCK_T"])
        steps = max(1, triton.cdiv(width, config["BLOCK_K"]))
        wanted = triton.cdiv(2 * tuning.multiprocessors(x.device), max(1, columns * blocks))
        per_split = triton.cdiv(steps, min(steps, wanted))
        splits = triton.cdiv(steps, per_split)
        partial = side if splits == 1 else side.new_empty(splits, tokens, outputs)
        if outputs:
            _product_kernel[(columns, splits, blocks)](
                x, delta, partial, tokens, width, outputs, per_split * config["BLOCK_K"], x.stride(0), **config
            )
        config = tuning.config("delta_linear", "distance", x.device)
        _distance_kernel[(tokens,)](
            partial, base, side, distance, tokens, outputs, splits, ACTIVATED=activated, **config
        )
    if sequences:
        config = tuning.config("delta_linear", "score", x.device)
        _score_kernel[(sequences,)](distance, offsets, weight, score, tokens, longest, **config)
    return side, distance, score
