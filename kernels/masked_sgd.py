"""masked_sgd_ in Triton: each program makes its tile of the outer product and steps that tile of delta, once."""

import triton
import triton.language as tl

from . import tuning
from .triton_helpers import multiply_add


@triton.jit
def _step_kernel(
    delta_ptr,  # [width, outputs] float32, stepped
    x_ptr,  # [tokens, width], rows of `stride`
    gradient_ptr,  # [tokens, outputs]
    masks_ptr,  # [width, words] int32
    base_ptr,  # [width, outputs], or None
    learning_rate, decay, limit, tokens, width, outputs, words, stride, delta_row, delta_column,
    DECAY: tl.constexpr, DECAY_MASKED: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
):  # fmt: skip
    """delta[tile] = clamp(delta - step): program (columns of d, rows of D)."""
    output = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    column = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)  # of x, a row of delta
    total = tl.zeros([BLOCK_I, BLOCK_O], tl.float32)
    for start in range(0, tokens, BLOCK_T):
        token = start + tl.arange(0, BLOCK_T)
        present, row = (token < tokens)[:, None], token.to(tl.int64)[:, None]
        feature = tl.load(x_ptr + row * stride + column[None, :], mask=present & (column < width)[None, :], other=0.0)
        upstream = tl.load(
            gradient_ptr + row * outputs + output[None, :], mask=present & (output < outputs)[None, :], other=0.0
        )
        total = multiply_add(tl.trans(feature), upstream, total)  # [BI, BT] @ [BT, BO]
    inside = (column < width)[:, None] & (output < outputs)[None, :]
    row = column.to(tl.int64)[:, None]
    word = tl.load(masks_ptr + row * words + (output // 32)[None, :], mask=inside, other=0)
    free = (word >> (output % 32)[None, :]) & 1 == 1  # [BI, BO]
    at = delta_ptr + row * delta_row + output[None, :] * delta_column
    before = tl.load(at, mask=inside, other=0.0)
    step = tl.where(free, learning_rate * total, 0.0)
    if DECAY:
        whole = before
        if base_ptr is not None:
            whole += tl.load(base_ptr + row * outputs + output[None, :], mask=inside, other=0.0).to(tl.float32)
        if DECAY_MASKED:
            step += tl.where(free, decay * whole, 0.0)
        else:
            step += decay * whole
    after = before - step
    after = tl.where(after > limit, limit, after)  # neither comparison holds for NaN, which stays
    after = tl.where(after < -limit, -limit, after)
    tl.store(at, after, mask=inside)


def masked_sgd_(delta, x, gradient, masks, base, learning_rate, decay, decay_masked, limit):
    (width, outputs), tokens = delta.shape, x.shape[0]
    if delta.numel() == 0:
        return
    x = x if x.stride(1) == 1 else x.contiguous()
    gradient, masks = gradient.contiguous(), masks.contiguous()
    base = None if base is None or decay == 0 else base.contiguous()
    variant = "step" if x.dtype == gradient.dtype != delta.dtype else "step_float32"
    config = tuning.config("masked_sgd", variant, delta.device)
    _step_kernel[(triton.cdiv(outputs, config["BLOCK_O"]), triton.cdiv(width, config["BLOCK_I"]))](
        delta, x, gradient, masks, base, learning_rate, decay, limit, tokens, width, outputs, masks.shape[1],
        x.stride(0), *delta.stride(), DECAY=decay != 0, DECAY_MASKED=decay_masked, **config,
    )  # fmt: skip
