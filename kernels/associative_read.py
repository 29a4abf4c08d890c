"""associative_read in Triton: a program takes one token and some columns, and reads the rows of the token's edit.

The softmax runs along with the rows (a running maximum and sum), so an edit may have any number of them. Where keys
are few and short every program scores them itself, in one launch; otherwise a first launch scores each row once.
What is read depends on the route, the row counts and the pages as they are on the device.
"""

import triton
import triton.language as tl

from . import tuning
from .associative_read_backward import associative_read_backward
from .associative_rows import row_slots, rows_read, scores
from .associative_scores import score
from .reference import PAGE_ROWS, on_copy

__all__ = ["associative_read", "associative_read_", "associative_read_backward"]

# Scoring again in each of the 8 programs of a token costs their reading 128 KB of keys from the second-level cache.
FUSED_KEYS = 65536


@triton.jit
def _read_kernel(
    y_ptr,  # [tokens, outputs], added to
    x_ptr,  # [tokens, width], rows of `stride`
    first_ptr,  # [tokens] bool
    keys_ptr,  # [banks, 8, width]
    values_ptr,  # [banks, 8, outputs]
    pages_ptr,  # [edits, page_count] int32
    rows_ptr,  # [edits] int32
    route_ptr,  # [tokens] int32
    background_ptr,  # [width] float32
    scales_ptr,  # [banks, 8] float32, or None
    dots_ptr,  # [tokens, capacity] float32, or None
    beta, width, outputs, page_count, capacity, stride, y_row, y_column,
    ROWS: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_D: tl.constexpr = 0,
):  # fmt: skip
    """y of one token += what its edit answers, in BLOCK_O columns; scores come from dots_ptr, or are made here."""
    token = tl.program_id(1).to(tl.int64)
    edit, count = rows_read(first_ptr, rows_ptr, route_ptr, token)
    if count == 0:
        return
    column = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    reached = column < outputs
    at = y_ptr + token * y_row + column * y_column
    answer = tl.load(at, mask=reached, other=0.0).to(tl.float32)  # asked for early: nothing it waits for is needed
    top = tl.full((), float("-inf"), tl.float32)
    mass = tl.full((), 0.0, tl.float32)
    total = tl.zeros([BLOCK_O], tl.float32)
    for start in range(0, count, ROWS):
        row = start + tl.arange(0, ROWS)
        # The first position reads row 0 alone, any other all rows but that.
        if count == 1:
            read = row == 0
        else:
            read = (row >= 1) & (row < count)
        slot = row_slots(pages_ptr, edit, row, read, page_count)
        value = tl.load(
            values_ptr + slot[:, None] * outputs + column[None, :], mask=read[:, None] & reached[None, :], other=0
        ).to(tl.float32)  # [ROWS, BO]
        if count == 1:
            score = tl.where(read, 0.0, float("-inf"))
        else:
            if dots_ptr is None:
                dot, _ = scores(x_ptr + token * stride, keys_ptr, background_ptr, slot, read, width, BLOCK_D)
            else:
                dot = tl.load(dots_ptr + token * capacity + row, mask=read, other=0.0)
            score = tl.where(read, beta * dot, float("-inf"))
        highest = tl.maximum(top, tl.max(score, 0))
        share = tl.exp(score - highest)
        fade = tl.exp(top - highest)
        mass = mass * fade + tl.sum(share, 0)
        if scales_ptr is not None:
            share *= tl.load(scales_ptr + slot, mask=read, other=0.0)
        total = total * fade + tl.sum(share[:, None] * value, 0)
        top = highest
    tl.store(at, answer + total / mass, mask=reached)


def associative_read_(y, x, first, keys, values, pages, rows, route, background, beta, scales):
    (tokens, outputs), width = y.shape, x.shape[1]
    page_count = pages.shape[1]
    if tokens == 0 or outputs == 0 or pages.numel() == 0:
        return
    x = x if x.stride(1) == 1 else x.contiguous()
    first, keys, values, pages, rows, route, background = (
        given.contiguous() for given in (first, keys, values, pages, rows, route, background)
    )
    scales = None if scales is None else scales.contiguous()
    capacity = page_count * PAGE_ROWS
    fused = capacity * width <= FUSED_KEYS
    config = tuning.config("associative_read", "fused" if fused else "read", y.device)
    dots = None
    if not fused:
        shape = tuning.config("associative_read", "score", y.device)
        dots, _, _ = score(None, x, first, keys, values, pages, rows, route, background, shape)
    _read_kernel[(triton.cdiv(outputs, config["BLOCK_O"]), tokens)](
        y, x, first, keys, values, pages, rows, route, background, scales, dots, beta,
        width, outputs, page_count, capacity, x.stride(0), *y.stride(), **config,
    )  # fmt: skip


associative_read = on_copy(associative_read_)
