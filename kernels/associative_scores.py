"""The scores of an edit's rows, k_r . u_t, in Triton: what associative_read and its gradients both start from."""

import torch
import triton
import triton.language as tl

from .associative_rows import row_slots, rows_read, scores
from .reference import PAGE_ROWS


@triton.jit
def score_kernel(
    grad_ptr,  # [tokens, outputs], or None
    x_ptr,  # [tokens, width], rows of `stride`
    first_ptr,  # [tokens] bool
    keys_ptr,  # [banks, 8, width]
    values_ptr,  # [banks, 8, outputs]
    pages_ptr,  # [edits, page_count] int32
    rows_ptr,  # [edits] int32
    route_ptr,  # [tokens] int32
    background_ptr,  # [width] float32
    dots_ptr,  # [tokens, capacity] float32, written
    shares_ptr,  # [tokens, capacity] float32, written, or None
    norms_ptr,  # [tokens] float32, written, or None
    width, outputs, page_count, capacity, stride,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """k_r . u_t into dots; with grad_ptr also grad_t . values_r into shares and |x_t - background| into norms."""
    block, token = tl.program_id(0), tl.program_id(1).to(tl.int64)
    edit, count = rows_read(first_ptr, rows_ptr, route_ptr, token)
    if (count <= 1) | (block * ROWS >= count):
        return
    row = block * ROWS + tl.arange(0, ROWS)
    read = (row >= 1) & (row < count)
    slot = row_slots(pages_ptr, edit, row, read, page_count)
    dot, norm = scores(x_ptr + token * stride, keys_ptr, background_ptr, slot, read, width, BLOCK_D)
    tl.store(dots_ptr + token * capacity + row, dot, mask=read)
    if grad_ptr is not None:
        total = tl.zeros([ROWS, BLOCK_D], tl.float32)
        for start in range(0, outputs, BLOCK_D):
            column = start + tl.arange(0, BLOCK_D)
            inside = column < outputs
            upstream = tl.load(grad_ptr + token * outputs + column, mask=inside, other=0.0).to(tl.float32)
            value = tl.load(
                values_ptr + slot[:, None] * outputs + column[None, :], mask=read[:, None] & inside[None, :], other=0.0
            )
            total += upstream[None, :] * value.to(tl.float32)
        tl.store(shares_ptr + token * capacity + row, tl.sum(total, 1), mask=read)
        if block == 0:
            tl.store(norms_ptr + token, norm)


def score(grad, x, first, keys, values, pages, rows, route, background, config):
    """Launch `score_kernel`; return (dots, shares, norms), the last two None without `grad`."""
    tokens, width = x.shape
    outputs, page_count = values.shape[2], pages.shape[1]
    capacity = page_count * PAGE_ROWS
    dots = torch.empty(tokens, capacity, dtype=torch.float32, device=x.device)
    shares, norms = (None, None) if grad is None else (torch.empty_like(dots), dots.new_empty(tokens))
    score_kernel[(triton.cdiv(capacity, config["ROWS"]), tokens)](
        grad, x, first, keys, values, pages, rows, route, background, dots, shares, norms,
        width, outputs, page_count, capacity, x.stride(0), **config,
    )  # fmt: skip
    return dots, shares, norms
