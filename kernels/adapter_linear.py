"""adapter_linear in Triton: a program takes one token and some columns, and reads the token's adapter in one launch.

Each program makes the inner products anew: of a low rank they are few, and what they read stays in the second cache.
"""

import triton
import triton.language as tl

from . import tuning


@triton.jit
def _adapter_kernel(
    y_ptr,  # [tokens, outputs], added to
    x_ptr,  # [tokens, width], rows of `stride`
    down_ptr,  # [blocks, rank, width]
    up_ptr,  # [blocks, rank, outputs]
    block_of_ptr,  # [edits] int32
    route_ptr,  # [tokens] int32
    rank, width, outputs, stride, y_row, y_column,
    RANKS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """y of one token += up^T down x of its edit's block, in BLOCK_O columns."""
    token = tl.program_id(1).to(tl.int64)
    edit = tl.load(route_ptr + token)
    if edit < 0:
        return
    block = tl.load(block_of_ptr + edit).to(tl.int64)
    column = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    reached = column < outputs
    at = y_ptr + token * y_row + column * y_column
    total = tl.load(at, mask=reached, other=0.0).to(tl.float32)
    for first in range(0, rank, RANKS):
        r = first + tl.arange(0, RANKS)
        row = block * rank + r
        products = tl.zeros([RANKS, BLOCK_D], tl.float32)
        for start in range(0, width, BLOCK_D):
            i = start + tl.arange(0, BLOCK_D)
            feature = tl.load(x_ptr + token * stride + i, mask=i < width, other=0.0).to(tl.float32)
            factor = tl.load(
                down_ptr + row[:, None] * width + i[None, :], mask=(r < rank)[:, None] & (i < width)[None, :], other=0.0
            )
            products += feature[None, :] * factor.to(tl.float32)
        inner = tl.sum(products, 1)
        factor = tl.load(
            up_ptr + row[:, None] * outputs + column[None, :], mask=(r < rank)[:, None] & reached[None, :], other=0.0
        )
        total += tl.sum(inner[:, None] * factor.to(tl.float32), 0)
    tl.store(at, total, mask=reached)


def adapter_linear_(y, x, down, up, block_of, route):
    (tokens, outputs), width, rank = y.shape, x.shape[1], down.shape[1]
    if tokens == 0 or outputs == 0 or rank == 0 or len(block_of) == 0:
        return
    x = x if x.stride(1) == 1 else x.contiguous()
    down, up, block_of, route = (given.contiguous() for given in (down, up, block_of, route))
    config = tuning.config("adapter_linear", "read", y.device)
    _adapter_kernel[(triton.cdiv(outputs, config["BLOCK_O"]), tokens)](
        y, x, down, up, block_of, route, rank, width, outputs, x.stride(0), *y.stride(), **config
    )
