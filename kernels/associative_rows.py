"""Device functions of associative_read: which rows of the banks a token reads, and how its direction scores them."""

import triton
import triton.language as tl


@triton.jit
def rows_read(first_ptr, rows_ptr, route_ptr, token):
    """(edit, n): n is 0 where the token reads nothing, 1 where it reads row 0 outright, else it reads 1 .. n - 1.

    Of first [tokens] bool, rows [edits] int32 and route [tokens] int32.
    """
    edit = tl.load(route_ptr + token).to(tl.int64)
    opens = tl.load(first_ptr + token).to(tl.int32) == 1
    count = tl.load(rows_ptr + edit, mask=edit >= 0, other=0)
    later = tl.where(count > 1, count, 0)
    return edit, tl.where(opens, tl.minimum(count, 1), later)


@triton.jit
def row_slots(pages_ptr, edit, row, read, page_count):
    """Rows of the flattened banks (int64), by pages [edits, page_count], of 8 rows each; 0 where not read."""
    page = tl.load(pages_ptr + edit * page_count + row // 8, mask=read, other=0)
    return tl.where(read, page.to(tl.int64) * 8 + row % 8, 0)


@triton.jit
def scores(x_ptr, keys_ptr, background_ptr, slot, read, width, BLOCK_D: tl.constexpr):
    """(keys_r . u [rows], max(|x - background|, 1e-6)) of one token's x, in one pass: u is divided out at the end.

    Of x [width], keys [banks, 8, width] and background [width].
    """
    total = tl.zeros([slot.shape[0], BLOCK_D], tl.float32)
    square = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, width, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        inside = column < width
        centred = tl.load(x_ptr + column, mask=inside, other=0.0).to(tl.float32)
        centred -= tl.load(background_ptr + column, mask=inside, other=0.0)
        key = tl.load(
            keys_ptr + slot[:, None] * width + column[None, :], mask=read[:, None] & inside[None, :], other=0.0
        )
        total += key.to(tl.float32) * centred[None, :]
        square += centred * centred
    norm = tl.maximum(tl.sqrt(tl.sum(square, 0)), 1e-6)
    return tl.sum(total, 1) / norm, norm
