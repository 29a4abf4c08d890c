"""Gradients of associative_read in Triton: scores again, softmax and its derivative per token, then each output.

A program owns a tile of one output and walks over the tokens that add to it in order, so that nothing is added
atomically; a page of the banks belongs to one edit.
"""

import torch
import triton
import triton.language as tl

from . import tuning
from .associative_rows import row_slots, rows_read
from .associative_scores import score
from .reference import PAGE_ROWS


@triton.jit
def _softmax_kernel(
    first_ptr,  # [tokens] bool
    rows_ptr,  # [edits] int32
    route_ptr,  # [tokens] int32
    dots_ptr,  # [tokens, capacity] float32: keys_r . u in, shares p_r out
    shares_ptr,  # [tokens, capacity] float32: grad . values_r in, gradients ds_r out
    radial_ptr,  # [tokens] float32, written: sum of ds_r dot_r
    beta, capacity,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Of one token: dots to shares p_r, shares (p_r's upstream) to the scores' gradient ds_r, and sum ds_r dot_r."""
    token = tl.program_id(0).to(tl.int64)
    _, count = rows_read(first_ptr, rows_ptr, route_ptr, token)
    if count <= 1:
        return
    dots_ptr += token * capacity
    shares_ptr += token * capacity
    top = tl.full((), float("-inf"), tl.float32)
    mass = tl.full((), 0.0, tl.float32)
    mean = tl.full((), 0.0, tl.float32)
    for start in range(0, count, ROWS):
        row = start + tl.arange(0, ROWS)
        read = (row >= 1) & (row < count)
        score = tl.where(read, beta * tl.load(dots_ptr + row, mask=read, other=0.0), float("-inf"))
        highest = tl.maximum(top, tl.max(score, 0))
        share, fade = tl.exp(score - highest), tl.exp(top - highest)
        mass = mass * fade + tl.sum(share, 0)
        mean = mean * fade + tl.sum(share * tl.load(shares_ptr + row, mask=read, other=0.0), 0)
        top = highest
    mean /= mass
    along = tl.full((), 0.0, tl.float32)
    for start in range(0, count, ROWS):
        row = start + tl.arange(0, ROWS)
        read = (row >= 1) & (row < count)
        dot = tl.load(dots_ptr + row, mask=read, other=0.0)
        share = tl.where(read, tl.exp(beta * dot - top) / mass, 0.0)
        dscore = beta * share * (tl.load(shares_ptr + row, mask=read, other=0.0) - mean)
        along += tl.sum(dscore * dot, 0)
        tl.store(dots_ptr + row, share, mask=read)
        tl.store(shares_ptr + row, dscore, mask=read)
    tl.store(radial_ptr + token, along)


@triton.jit
def _input_kernel(
    x_ptr,  # [tokens, width], rows of `stride`
    first_ptr,  # [tokens] bool
    keys_ptr,  # [banks, 8, width]
    pages_ptr,  # [edits, page_count] int32
    rows_ptr,  # [edits] int32
    route_ptr,  # [tokens] int32
    background_ptr,  # [width] float32
    dscores_ptr,  # [tokens, capacity] float32
    radial_ptr,  # [tokens] float32
    norms_ptr,  # [tokens] float32
    dx_ptr,  # [tokens, width], written
    width, page_count, capacity, stride,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dx of one token in BLOCK_D columns: (sum ds_r keys_r - u radial) / |x - background|, and 0 where none is read."""
    token = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = column < width
    edit, count = rows_read(first_ptr, rows_ptr, route_ptr, token)
    update = tl.zeros([BLOCK_D], tl.float32)
    if count > 1:
        for start in range(0, count, ROWS):
            row = start + tl.arange(0, ROWS)
            read = (row >= 1) & (row < count)
            slot = row_slots(pages_ptr, edit, row, read, page_count)
            dscore = tl.load(dscores_ptr + token * capacity + row, mask=read, other=0.0)
            key = tl.load(
                keys_ptr + slot[:, None] * width + column[None, :], mask=read[:, None] & inside[None, :], other=0.0
            ).to(tl.float32)
            update += tl.sum(dscore[:, None] * key, 0)
        norm = tl.load(norms_ptr + token)
        centred = tl.load(x_ptr + token * stride + column, mask=inside, other=0.0).to(tl.float32)
        centred -= tl.load(background_ptr + column, mask=inside, other=0.0)
        # A norm held at 1e-6 is a constant, and has no derivative.
        along = tl.where(norm > 1e-6, tl.load(radial_ptr + token), 0.0)
        update = (update - centred / norm * along) / norm
    tl.store(dx_ptr + token * width + column, update, mask=inside)


@triton.jit
def _bank_kernel(
    vectors_ptr,  # [tokens, columns], rows of `stride`: x for keys, grad for values
    background_ptr,  # [columns] float32, or None
    first_ptr,  # [tokens] bool
    pages_ptr,  # [edits, page_count] int32
    rows_ptr,  # [edits] int32
    route_ptr,  # [tokens] int32
    coefficients_ptr,  # [tokens, capacity] float32
    norms_ptr,  # [tokens] float32, or None
    bank_ptr,  # [banks, 8, columns], written where an edit owns rows
    tokens, columns, page_count, capacity, stride,
    BLOCK_T: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Rows of one edit: sum over its tokens of coefficient_tr vector_t; of keys where norms are given, else of values.

    The vector is u_t for keys and grad_t for values, to whose row 0 the first positions add. Token by token: the
    tokens of one edit are few, and no product of zeros lets one that is not finite into rows it does not reach.
    """
    edit = tl.program_id(2).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = column < columns
    count = tl.load(rows_ptr + edit)
    if tl.program_id(1) * ROWS >= count:
        return
    read = (row >= 1) & (row < count)
    total = tl.zeros([ROWS, BLOCK_C], tl.float32)
    for start in range(0, tokens, BLOCK_T):
        block = start + tl.arange(0, BLOCK_T)
        if tl.max((tl.load(route_ptr + block, mask=block < tokens, other=-1) == edit).to(tl.int32), 0) == 1:
            for t in range(start, tl.minimum(start + BLOCK_T, tokens)):
                token = tl.cast(t, tl.int64)
                if tl.load(route_ptr + token) == edit:
                    opens = tl.load(first_ptr + token).to(tl.int32)
                    if opens == 0:
                        vector = tl.load(vectors_ptr + token * stride + column, mask=inside, other=0.0).to(tl.float32)
                        if norms_ptr is not None:
                            vector -= tl.load(background_ptr + column, mask=inside, other=0.0)
                            vector /= tl.load(norms_ptr + token)
                        coefficient = tl.load(coefficients_ptr + token * capacity + row, mask=read, other=0.0)
                        total += tl.where(read[:, None], coefficient[:, None] * vector[None, :], 0.0)
                    elif norms_ptr is None:
                        vector = tl.load(vectors_ptr + token * stride + column, mask=inside, other=0.0).to(tl.float32)
                        total += tl.where((row == 0)[:, None], vector[None, :], 0.0)
    owned = row < count
    slot = row_slots(pages_ptr, edit, row, owned, page_count)
    tl.store(bank_ptr + slot[:, None] * columns + column[None, :], total, mask=owned[:, None] & inside[None, :])


def associative_read_backward(grad, x, first, keys, values, pages, rows, route, background, beta, needed):

    need_x, need_keys, need_values = needed
    dx = torch.empty(x.shape if need_x else (0, 0), dtype=x.dtype, device=x.device)
    # Rows that no edit owns have no program to clear them.
    dkeys, dvalues = (
        torch.zeros(like.shape if need else (0, 0, 0), dtype=like.dtype, device=like.device)
        for like, need in zip((keys, values), (need_keys, need_values))
    )
    (tokens, outputs), width = grad.shape, x.shape[1]
    edits, page_count = pages.shape
    if tokens == 0 or pages.numel() == 0 or not any(needed):
        return dx.zero_(), dkeys, dvalues
    x = x if x.stride(1) == 1 else x.contiguous()
    grad, first, keys, values, pages, rows, route, background = (
        given.contiguous() for given in (grad, first, keys, values, pages, rows, route, background)
    )
    device, capacity = x.device, page_count * PAGE_ROWS
    config = tuning.config("associative_read", "score", device)
    dots, shares, norms = score(grad, x, first, keys, values, pages, rows, route, background, config)
    radial = torch.empty_like(norms)
    config = tuning.config("associative_read", "softmax", device)
    _softmax_kernel[(tokens,)](first, rows, route, dots, shares, radial, beta, capacity, **config)
    if dx.numel():
        config = tuning.config("associative_read", "input_gradient", device)
        _input_kernel[(triton.cdiv(width, config["BLOCK_D"]), tokens)](
            x, first, keys, pages, rows, route, background, shares, radial, norms, dx,
            width, page_count, capacity, x.stride(0), **config,
        )  # fmt: skip
    config = tuning.config("associative_read", "bank_gradient", device)
    blocks = triton.cdiv(capacity, config["ROWS"])
    if dkeys.numel():
        _bank_kernel[(triton.cdiv(width, config["BLOCK_C"]), blocks, edits)](
            x, background, first, pages, rows, route, shares, norms, dkeys,
            tokens, width, page_count, capacity, x.stride(0), **config,
        )  # fmt: skip
    if dvalues.numel():
        _bank_kernel[(triton.cdiv(outputs, config["BLOCK_C"]), blocks, edits)](
            grad, None, first, pages, rows, route, dots, None, dvalues,
            tokens, outputs, page_count, capacity, outputs, **config,
        )  # fmt: skip
    return dx, dkeys, dvalues
