"""topk_mask in Triton: pool each sequence, then select the k largest magnitudes of the row in one program.

A few tokens are pooled by the program that selects, in one launch; more of them by a kernel of their own, split over
columns and tokens, whose partial sums the selection adds up.
"""

import torch
import triton
import triton.language as tl

from . import tuning
from .triton_helpers import kth_largest, magnitude_key

# One program reads about 60 GB/s, a row of 14336 halves in 0.5 us: beyond 8 of them the second launch is cheaper.
FUSED_TOKENS = 8
PART = 4096  # bits that are permuted at once


@triton.jit
def _pool(x_ptr, weight_ptr, first, last, stride, column, width, BLOCK_T: tl.constexpr):
    """(sum of w_t x_t [columns], sum of w_t) over the tokens first .. last - 1.

    Of x [tokens, width] with rows of `stride`, and weight [tokens] or None.
    """
    total = tl.zeros([column.shape[0]], tl.float32)
    mass = tl.full((), 0.0, tl.float32)
    for start in range(first, last, BLOCK_T):
        token = start + tl.arange(0, BLOCK_T)
        mine = token < last
        at = x_ptr + token.to(tl.int64)[:, None] * stride + column[None, :]
        part = tl.load(at, mask=mine[:, None] & (column < width)[None, :], other=0.0).to(tl.float32)  # [BT, BD]
        if weight_ptr is not None:
            share = tl.load(weight_ptr + token, mask=mine, other=0.0)
            part *= share[:, None]
        else:
            share = mine.to(tl.float32)
        total += tl.sum(part, 0)
        mass += tl.sum(share, 0)
    return total, mass


@triton.jit
def _pool_kernel(
    x_ptr,  # [tokens, width], rows of `stride`
    weight_ptr,  # [tokens] float32, or None
    offsets_ptr,  # [batch + 1] int32
    partial_ptr,  # [splits, batch, width] float32, written
    mass_ptr,  # [splits, batch] float32, written
    stride, width, batch, splits,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Partial sums [splits, B, D] and masses [splits, B]: program (columns, sequence, split)."""
    column = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    sequence, split = tl.program_id(1), tl.program_id(2)
    start, stop = tl.load(offsets_ptr + sequence), tl.load(offsets_ptr + sequence + 1)
    chunk = tl.cdiv(stop - start, splits)
    first = start + split * chunk
    total, share = _pool(x_ptr, weight_ptr, first, tl.minimum(first + chunk, stop), stride, column, width, BLOCK_T)
    row = split.to(tl.int64) * batch + sequence
    tl.store(partial_ptr + row * width + column, total, mask=column < width)
    if tl.program_id(0) == 0:
        tl.store(mass_ptr + row, share)


@triton.jit
def _select_kernel(
    x_ptr,  # [tokens, width], rows of `stride`
    weight_ptr,  # [tokens] float32, or None
    offsets_ptr,  # [batch + 1] int32
    partial_ptr,  # [splits, batch, width] float32, or None
    mass_ptr,  # [splits, batch] float32, or None
    background_ptr,  # [width] float32, or None
    permutation_ptr,  # [width] int64, or None
    unplaced_ptr,  # [batch, words] int32, scratch where there is a permutation
    masks_ptr,  # [batch, words] int32, written
    ticket_ptr,  # [batch] int32, written, or None
    stride, width, words, batch, k, splits,
    BLOCK: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Mask of one sequence; it pools itself where no partial sums are given, and clears ticket_ptr for who follows."""
    sequence = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    if partial_ptr is None:
        start, stop = tl.load(offsets_ptr + sequence), tl.load(offsets_ptr + sequence + 1)
        total, share = _pool(x_ptr, weight_ptr, start, stop, stride, column, width, 1)
    else:
        total = tl.zeros([BLOCK], tl.float32)
        share = tl.full((), 0.0, tl.float32)
        for split in range(splits):
            row = tl.cast(split, tl.int64) * batch + sequence
            total += tl.load(partial_ptr + row * width + column, mask=column < width, other=0.0)
            share += tl.load(mass_ptr + row)
    pooled = tl.where(share == 0.0, 0.0, tl.div_rn(total, tl.zeros_like(total) + share))
    if background_ptr is not None:
        pooled -= tl.load(background_ptr + column, mask=column < width, other=0.0)

    key = tl.where(column < width, magnitude_key(pooled), -1)
    threshold = kth_largest(key, k)
    missing = k - tl.sum((key > threshold).to(tl.int32), 0)
    # Of the entries that equal the threshold the first `missing`: those before `last`, found by bisection too, for a
    # scan keeps another vector alive, which at 16384 entries spills. Without ties there is nothing to find.
    tied = tl.sum((key == threshold).to(tl.int32), 0)
    last = tl.full((), BLOCK, tl.int32)
    below = tl.where(tied > missing, 0, BLOCK)
    while last - below > 1:
        middle = below + ((last - below) >> 1)
        count = tl.sum(((key == threshold) & (column < middle)).to(tl.int32), 0)
        below = tl.where(count < missing, middle, below)
        last = tl.where(count < missing, last, middle)
    chosen = (key > threshold) | ((key == threshold) & (column < last))

    word = tl.arange(0, BLOCK // 32)
    packed = tl.sum(tl.reshape(chosen.to(tl.int32), (BLOCK // 32, 32)) << tl.arange(0, 32)[None, :], 1)
    out = masks_ptr + sequence.to(tl.int64) * words
    if permutation_ptr is None:
        tl.store(out + word, packed, mask=word < words)
    else:
        # The scatter goes through memory that this program alone touches, by parts: 16384 int64 places would spill.
        kept = unplaced_ptr + sequence.to(tl.int64) * words
        tl.store(kept + word, packed, mask=word < words)
        tl.store(out + word, tl.zeros([BLOCK // 32], tl.int32), mask=word < words)
        tl.debug_barrier()
        for start in range(0, width, PART):
            source = start + tl.arange(0, PART)
            place = tl.load(permutation_ptr + source, mask=source < width, other=0).to(tl.int32)
            bit = (tl.load(kept + source // 32, mask=source < width, other=0) >> (source % 32)) & 1
            tl.atomic_or(out + place // 32, bit << (place % 32), mask=bit == 1, sem="relaxed")
    if ticket_ptr is not None:
        tl.store(ticket_ptr + sequence, 0)


def topk_mask(x, offsets, k, weight, background, permutation, ticket=None):
    """As the op; `ticket` [B] int32 is set to zero on the way, which saves `mask_route` a launch."""
    tokens, width = x.shape
    batch, words = offsets.shape[0] - 1, triton.cdiv(width, 32)
    masks = torch.empty(batch, words, dtype=torch.int32, device=x.device)
    unplaced = None if permutation is None else torch.empty_like(masks)
    if batch == 0:
        return masks
    x = x if x.stride(1) == 1 else x.contiguous()
    offsets = offsets.contiguous()
    weight, background, permutation = (
        None if given is None else given.contiguous() for given in (weight, background, permutation)
    )
    partial = mass = None
    splits = 1
    if tokens > FUSED_TOKENS:
        config = tuning.config("topk_mask", "pool", x.device)
        columns = triton.cdiv(width, config["BLOCK_D"])
        # Enough programs for four on each multiprocessor, none of them with less than one block of tokens.
        wanted = triton.cdiv(4 * tuning.multiprocessors(x.device), columns * batch)
        splits = max(1, min(wanted, triton.cdiv(tokens, batch * config["BLOCK_T"])))
        partial = torch.empty(splits, batch, width, dtype=torch.float32, device=x.device)
        mass = torch.empty(splits, batch, dtype=torch.float32, device=x.device)
        _pool_kernel[(columns, batch, splits)](
            x, weight, offsets, partial, mass, x.stride(0), width, batch, splits, **config
        )
    block = max(1024, triton.next_power_of_2(width))
    config = tuning.config("topk_mask", f"select_{block}", x.device)
    _select_kernel[(batch,)](
        x, weight, offsets, partial, mass, background, permutation, unplaced, masks, ticket,
        x.stride(0), width, words, batch, k, splits, BLOCK=block, PART=min(block, PART), **config,
    )  # fmt: skip
    return masks
