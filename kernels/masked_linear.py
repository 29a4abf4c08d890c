"""masked_linear in Triton: gather the rows of memory that the masks of a block of tokens name, and no others.

A program takes a block of tokens, of columns of memory and of mask words. It ORs the tokens' masks, finds each set
bit of that union by its rank (`nth_set_bits`), and loads those rows of memory whole: with one mask for all tokens
k of D rows, with many masks at most all of them, each once a block. No list of columns is written and no launch goes
before. One token multiplies on the ordinary cores, more of them on the tensor cores, each token's x masked by its own
bits. Where tokens are too few to fill the GPU the words are split, and a second launch adds the parts in order.
"""

import torch
import triton
import triton.language as tl

from . import tuning
from .masked_linear_backward import masked_linear_backward
from .reference import on_copy
from .triton_helpers import finite, multiply_add, nth_set_bits, popcount, union

__all__ = ["masked_linear", "masked_linear_", "masked_linear_backward"]

# Distinct masks of k of D = 4096 of 14336 bits: apart, two tokens read 2 x 33.5 MB, as a block 57 MB but padded to 16.
ALONE_TOKENS = 2
FEW_TOKENS = 32  # beyond, blocks of 64 tokens: fewer passes over memory


@triton.jit
def _exact_sums(
    x_ptr, memory_ptr, masks_ptr, route_ptr, tokens, words, outputs, stride, first_token, first_bit, last_bit, column,
    total, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """The block's sums token by token and bit by bit: slow, but in few registers, and nothing meets a zero.

    Of x [tokens, width] with rows of `stride`, memory [width, outputs], masks [entries, words] and route [tokens].
    """
    for t in range(BLOCK_T):
        token = tl.cast(first_token + t, tl.int64)
        entry = tl.load(route_ptr + token, mask=token < tokens, other=-1).to(tl.int64)
        if entry >= 0:
            exact = tl.zeros([column.shape[0]], tl.float32)
            for i in range(first_bit, last_bit):
                if (tl.load(masks_ptr + entry * words + i // 32) >> (i % 32)) & 1 == 1:
                    share = tl.load(x_ptr + token * stride + i).to(tl.float32)
                    row = memory_ptr + tl.cast(i, tl.int64) * outputs
                    exact += share * tl.load(row + column, mask=column < outputs, other=0.0).to(tl.float32)
            total = tl.where((tl.arange(0, BLOCK_T) == t)[:, None], exact[None, :], total)
    return total


@triton.jit
def _accumulate_kernel(
    y_ptr,  # [tokens, outputs], added to where there is no partial_ptr
    x_ptr,  # [tokens, width], rows of `stride`
    memory_ptr,  # [width, outputs]
    masks_ptr,  # [entries, words] int32
    route_ptr,  # [tokens] int32
    partial_ptr,  # [splits, tokens, outputs] float32, written, or None
    tokens, width, outputs, words, chunks, stride, y_row, y_column,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_O: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Sums of `chunks` times WORDS mask words: into y where partial_ptr is None, else into [splits, tokens, d]."""
    column = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    split = tl.program_id(1)
    token = tl.program_id(2) * BLOCK_T + tl.arange(0, BLOCK_T)
    entry = tl.load(route_ptr + token, mask=token < tokens, other=-1).to(tl.int64)
    if tl.max(entry, 0) < 0:
        return
    reached = (column < outputs)[None, :]
    if BLOCK_T == 1:
        total = tl.zeros([BLOCK_K, BLOCK_O], tl.float32)  # reduced once, after the loop
    else:
        total = tl.zeros([BLOCK_T, BLOCK_O], tl.float32)
    first_word = split * chunks * WORDS
    held = masks_ptr + entry[:, None] * words
    features = x_ptr + token.to(tl.int64)[:, None] * stride
    routed = (entry >= 0)[:, None]
    for chunk in range(chunks):
        word = first_word + chunk * WORDS + tl.arange(0, WORDS)
        either = union(tl.load(held + word[None, :], mask=routed & (word < words)[None, :], other=0))  # [WORDS]
        count = tl.sum(popcount(either), 0)
        for start in range(0, count, BLOCK_K):
            rank = start + tl.arange(0, BLOCK_K)
            real = rank < count
            at = (first_word + chunk * WORDS) * 32 + nth_set_bits(either, rank)
            rows = memory_ptr + at.to(tl.int64)[:, None] * outputs + column[None, :]
            part = tl.load(rows, mask=real[:, None] & reached, other=0.0)  # [BK, BO]
            if BLOCK_T == 1:
                share = tl.load(x_ptr + token.to(tl.int64) * stride + at, mask=real, other=0.0)
                total += share.to(tl.float32)[:, None] * part.to(tl.float32)
            else:
                bits = tl.load(held + (at // 32)[None, :], mask=routed & real[None, :], other=0)
                own = (bits >> (at % 32)[None, :]) & 1 == 1
                share = tl.load(features + at[None, :], mask=own, other=0.0)  # [BT, BK]
                total = multiply_add(share, part, total)
    if BLOCK_T == 1:
        total = tl.sum(total, 0)[None, :]
    elif not finite(total):
        # A row of one token's mask that is not finite has met the zeros of the others: 0 * inf is NaN.
        last_bit = tl.minimum((first_word + chunks * WORDS) * 32, width)
        total = _exact_sums(
            x_ptr, memory_ptr, masks_ptr, route_ptr, tokens, words, outputs, stride, tl.program_id(2) * BLOCK_T,
            first_word * 32, last_bit, column, total, BLOCK_T,
        )  # fmt: skip
    written = (entry >= 0)[:, None] & reached
    row = token.to(tl.int64)[:, None]
    if partial_ptr is None:
        at = y_ptr + row * y_row + column[None, :] * y_column
        tl.store(at, tl.load(at, mask=written, other=0.0).to(tl.float32) + total, mask=written)
    else:
        tl.store(partial_ptr + (split.to(tl.int64) * tokens + row) * outputs + column[None, :], total, mask=written)


@triton.jit
def _finish_kernel(
    y_ptr,  # [tokens, outputs], added to
    route_ptr,  # [tokens] int32
    partial_ptr,  # [splits, tokens, outputs] float32
    tokens, outputs, splits, y_row, y_column,
    BLOCK_O: tl.constexpr,
):  # fmt: skip
    """y of one routed token += its parts, added in the order of the splits and rounded once."""
    column = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    token = tl.program_id(1).to(tl.int64)
    if tl.load(route_ptr + token) < 0:
        return
    reached = column < outputs
    total = tl.zeros([BLOCK_O], tl.float32)
    for split in range(splits):
        part = partial_ptr + (tl.cast(split, tl.int64) * tokens + token) * outputs + column
        total += tl.load(part, mask=reached, other=0.0)
    at = y_ptr + token * y_row + column * y_column
    tl.store(at, tl.load(at, mask=reached, other=0.0).to(tl.float32) + total, mask=reached)


def masked_linear_(y, x, memory, masks, route):
    (tokens, outputs), width = y.shape, x.shape[1]
    words = masks.shape[1]
    if tokens == 0 or outputs == 0 or masks.shape[0] == 0:
        return
    x = x if x.stride(1) == 1 else x.contiguous()
    memory, masks, route = memory.contiguous(), masks.contiguous(), route.contiguous()
    variant = "one" if tokens <= ALONE_TOKENS else "few" if tokens <= FEW_TOKENS else "many"
    if variant != "one" and not x.dtype == memory.dtype != torch.float32:
        variant += "_float32"  # three products in twice the bits: tiles of half the size, or registers spill
    config = tuning.config("masked_linear", variant, y.device)
    columns, blocks = triton.cdiv(outputs, config["BLOCK_O"]), triton.cdiv(tokens, config["BLOCK_T"])
    pieces = triton.cdiv(words, config["WORDS"])
    wanted = triton.cdiv(4 * tuning.multiprocessors(y.device), columns * blocks)
    chunks = triton.cdiv(pieces, min(pieces, wanted))
    splits = triton.cdiv(pieces, chunks)
    partial = None
    if splits > 1:
        partial = torch.empty(splits, tokens, outputs, dtype=torch.float32, device=y.device)
    _accumulate_kernel[(columns, splits, blocks)](
        y, x, memory, masks, route, partial, tokens, width, outputs, words, chunks, x.stride(0), *y.stride(), **config
    )
    if splits > 1:
        config = tuning.config("masked_linear", "finish", y.device)
        _finish_kernel[(triton.cdiv(outputs, config["BLOCK_O"]), tokens)](
            y, route, partial, tokens, outputs, splits, *y.stride(), **config
        )


masked_linear = on_copy(masked_linear_)
