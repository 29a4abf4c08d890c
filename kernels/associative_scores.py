"""The scores of an edit's rows, k_r . u_t, in Triton: what associative_read and its gradients both start from."""

import torch
import triton
import triton.language as tl

from .associative_rows import row_slots, rows_read, scores
from .reference import PAGE_ROWS


@triton.jit
def score_kernel(
    grad, x, first, keys, values, pages, rows, route, background, dots, shares, norms, width, outputs, page_count,
    capacity, stride, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """k_r . u_t into dots [tokens, capacity]; with `grad` also grad_t . values_r into shares, |x_t - bg| into norms."""
    block, token = tl.program_id(0), tl.program_id(1).to(tl.int64)
    edit, count = rows_read(first, rows, route, token)
    if (count <= 1) | (block * ROWS >= count):
        return
    row = block * ROWS + tl.arange(0, ROWS)
    read = (row >= 1) & (row < count)
    slot = row_slots(pages, edit, row, read, page_count)
    dot, norm = scores(x + token * stride, keys, background, slot, read, width, BLOCK_D)
    tl.store(dots + token * capacity + row, dot, mask=read)
    if grad is not None:
        total = tl.zeros([ROWS, BLOCK_D], tl.float32)
        for start in range(0, outputs, BLOCK_D):
            column = start + tl.arange(0, BLOCK_D)
            inside = column < outputs
            upstream = tl.load(grad + token * outputs + column, mask=inside, other=0.0).to(tl.float32)
            value = tl.load(
                values + slot[:, None] * outputs + column[None, :], mask=read[:, None] & inside[None, :], other=0.0
            )
            total += upstream[None, :] * value.to(tl.float32)
        tl.store(shares + token * capacity + row, tl.sum(total, 1), mask=read)
        if block == 0:
            tl.store(norms + token, norm)


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
