"""masked_linear, its in-place form and its gradients against a loop over set bits in float64."""

import numpy as np
import pytest
import torch
from cases import (
    WIDTHS,
    assert_close,
    bits,
    each_backend,
    exact,
    normal,
    property_test,
    random_masks,
    random_route,
    same_bits,
)
from hypothesis import given
from hypothesis import strategies as st

from corrigenda.kernels import dispatch, ops

DTYPES = [  # of y, x and memory
    (torch.float32, torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16, torch.float32),
    (torch.float16, torch.float16, torch.float16),
]


def make(tokens, width, outputs, entries, seed, dtypes=DTYPES[0]):
    y, x, memory = (
        normal(*shape, seed=seed + i, dtype=dtype)
        for i, (shape, dtype) in enumerate(zip(((tokens, outputs), (tokens, width), (width, outputs)), dtypes))
    )
    return y, x, memory, random_masks(entries, width, seed), random_route(tokens, entries, seed)


def slow_masked_linear(y, x, memory, masks, route):
    out, x, memory, chosen = exact(y).copy(), exact(x), exact(memory), bits(masks, x.shape[1])
    for t, entry in enumerate(route.tolist()):
        if entry >= 0:
            for i in np.flatnonzero(chosen[entry]):
                out[t] += x[t, i] * memory[i]
    return out


def slow_backward(grad, x, memory, masks, route):
    grad, x, memory, chosen = exact(grad), exact(x), exact(memory), bits(masks, x.shape[1])
    dx, dmemory = np.zeros_like(x), np.zeros_like(memory)
    for t, entry in enumerate(route.tolist()):
        if entry >= 0:
            for i in np.flatnonzero(chosen[entry]):
                dx[t, i] = grad[t] @ memory[i]
                dmemory[i] += x[t, i] * grad[t]
    return dx, dmemory


def check(backend, y, x, memory, masks, route):
    before = y.clone()
    with dispatch.use(backend):
        out = ops.masked_linear(y, x, memory, masks, route)
        inplace = y.clone(memory_format=torch.preserve_format)
        assert ops.masked_linear_(inplace, x, memory, masks, route) is inplace
        gradients = ops.masked_linear_backward(y, x, memory, masks, route)
    assert out.dtype == y.dtype and out.is_contiguous() and same_bits(y, before)
    assert_close(out, slow_masked_linear(y, x, memory, masks, route))
    assert same_bits(out, inplace)
    unrouted = route < 0
    assert same_bits(out[unrouted], y[unrouted])
    for actual, expected, like in zip(gradients, slow_backward(y, x, memory, masks, route), (x, memory)):
        assert actual.dtype == like.dtype
        assert_close(actual, expected)


@each_backend("masked_linear")
@property_test
@given(data=st.data())
def test_equals_a_loop_over_bits(backend, data):
    tokens, entries = data.draw(st.integers(0, 7)), data.draw(st.integers(0, 4))
    width, outputs = data.draw(st.sampled_from(WIDTHS)), data.draw(st.sampled_from((1, 5, 32)))
    dtypes = data.draw(st.sampled_from(DTYPES))
    check(backend, *make(tokens, width, outputs, entries, data.draw(st.integers(0, 1000)), dtypes))


@each_backend("masked_linear")
def test_model_shape(backend):
    y, x, memory, _, route = make(9, 1536, 576, 3, 0, DTYPES[1])
    check(backend, y, x, memory, random_masks(3, 1536, seed=0, k=438), route)


@each_backend("masked_linear")
@pytest.mark.parametrize(
    "tokens, width, outputs, entries",
    [(40, 97, 70, 3), (33, 160, 33, 33), (70, 600, 32, 1), (330, 64, 17, 2), (20, 33, 1100, 20)],
    ids=str,
)
def test_many_tokens(backend, tokens, width, outputs, entries):
    """Enough for products of matrices, in sizes that fill no tile: groups of masks, and masks of many tokens."""
    y, x, memory, masks, route = make(tokens, width, outputs, entries, 11, DTYPES[1])
    check(backend, y, x, memory, random_masks(entries, width, 11, k=width * 2 // 3), route)
    check(backend, y, x, memory, masks, route)


@each_backend("masked_linear")
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_an_infinite_entry_reaches_those_that_read_it(backend, value):
    """Others share the product of matrices, in which its row stands beside a zero."""
    y, x, memory, _, route = make(40, 97, 70, 4, 12, DTYPES[1])
    masks = random_masks(4, 97, 12, k=60)
    mine = torch.from_numpy(bits(masks, 97)[:, 5])
    reads = (route >= 0) & mine[route.long()]
    assert reads.any() and ((route >= 0) & ~reads).any()
    with dispatch.use(backend):
        clean = ops.masked_linear(y, x, memory, masks, route)
        memory[5, 33] = value
        out = ops.masked_linear(y, x, memory, masks, route)
    assert not out[reads, 33].isfinite().any()
    out[reads, 33] = clean[reads, 33]
    assert_close(out, exact(clean))


@each_backend("masked_linear_backward")
def test_an_infinite_gradient_reaches_the_rows_that_its_token_reads(backend):
    y, x, memory, _, route = make(40, 97, 70, 4, 13, DTYPES[1])
    masks = random_masks(4, 97, 13, k=60)
    route[7] = 2
    reads = torch.from_numpy(bits(masks[2:3], 97)[0])
    with dispatch.use(backend):
        clean = ops.masked_linear_backward(y, x, memory, masks, route)
        y[7, 33] = torch.inf
        dx, dmemory = ops.masked_linear_backward(y, x, memory, masks, route)
    assert not dx[7, reads].isfinite().any() and not dmemory[reads, 33].isfinite().any()
    dx[7, reads], dmemory[reads, 33] = clean[0][7, reads], clean[1][reads, 33]
    assert_close(dx, exact(clean[0]))
    assert_close(dmemory, exact(clean[1]))


@each_backend("masked_linear")
def test_a_subnormal_factor_counts_as_itself_or_as_zero(backend):
    y, x, memory, masks, route = make(40, 64, 33, 1, 14, DTYPES[1])
    masks[:], route[:], y[:] = -1, 0, 0
    x[:] = 2.0**-130
    with dispatch.use(backend):
        out = ops.masked_linear(y, x, memory, masks, route)
    assert np.abs(exact(out) - slow_masked_linear(y, x, memory, masks, route)).max() < 64 * 4 * 2.0**-126


@each_backend("masked_linear")
def test_unrouted_rows_keep_every_bit(backend):
    """-0.0 + 0.0 is 0.0, so adding an empty update would show."""
    y, x, memory, masks, _ = make(4, 40, 6, 2, 1)
    y[:] = -0.0
    y[3, 0] = torch.nan
    route = torch.tensor([-1, 1, -1, -1], dtype=torch.int32)
    with dispatch.use(backend):
        out = ops.masked_linear(y, x, memory, masks, route)
        inplace = ops.masked_linear_(y.clone(), x, memory, masks, route)
    for result in (out, inplace):
        assert same_bits(result[[0, 2, 3]], y[[0, 2, 3]])
        assert not same_bits(result[1], y[1])


@each_backend("masked_linear")
def test_what_the_mask_leaves_out_is_not_read(backend):
    y, x, memory, masks, route = make(6, 70, 5, 3, 2)
    masks[:] = masks[1]
    outside = torch.from_numpy(~bits(masks[:1], 70)[0])
    with dispatch.use(backend):
        expected = ops.masked_linear(y, x, memory, masks, route)
        clean = ops.masked_linear_backward(y, x, memory, masks, route)
        x[:, outside], memory[outside] = torch.nan, torch.inf
        assert torch.equal(ops.masked_linear(y, x, memory, masks, route), expected)
        for gradient, before in zip(ops.masked_linear_backward(y, x, memory, masks, route), clean):
            assert torch.equal(gradient, before)


@each_backend("masked_linear")
def test_empty_memory_and_empty_batch(backend):
    check(backend, *make(0, 33, 4, 2, 3))
    check(backend, *make(3, 33, 4, 0, 3))


@each_backend("masked_linear")
def test_views_with_odd_offsets(backend):
    y, x, memory, _, route = make(12, 80, 14, 6, 4)
    part = (x[1::2, 1::2], memory[1::2, 1::2], random_masks(6, 40, 4), route[::2])
    check(backend, y[1::2, 1::2], *part)
    wide, expected = y.clone(), y.clone()
    with dispatch.use(backend):
        expected[1::2, 1::2] = ops.masked_linear(y[1::2, 1::2], *part)
        ops.masked_linear_(wide[1::2, 1::2], *part)
    assert same_bits(wide, expected)


def test_gradcheck():
    y, x, memory, masks, route = make(5, 37, 4, 3, 5, (torch.float64,) * 3)
    leaves = [tensor.requires_grad_() for tensor in (y, x, memory)]
    assert torch.autograd.gradcheck(lambda *floats: ops.masked_linear(*floats, masks, route), leaves)


@each_backend("masked_linear_backward")
def test_gradients_reach_y_x_and_memory(backend):
    y, x, memory, masks, route = make(6, 50, 7, 3, 6)
    leaves = [tensor.requires_grad_() for tensor in (y, x, memory)]
    upstream = normal(6, 7, seed=7)
    with dispatch.use(backend):
        ops.masked_linear(*leaves, masks, route).backward(upstream)
    dx, dmemory = slow_backward(upstream, x, memory, masks, route)
    assert torch.equal(y.grad, upstream)
    assert_close(x.grad, dx)
    assert_close(memory.grad, dmemory)


@each_backend("masked_linear_backward")
@pytest.mark.parametrize("needed", [(True, False), (False, True), (False, False)])
def test_only_needed_gradients_are_computed(backend, needed):
    y, x, memory, masks, route = make(6, 50, 7, 3, 8)
    with dispatch.use(backend):
        both = ops.masked_linear_backward(y, x, memory, masks, route)
        some = ops.masked_linear_backward(y, x, memory, masks, route, needed)
        x.requires_grad_(needed[0])
        memory.requires_grad_(needed[1])
        ops.masked_linear(y.requires_grad_(), x, memory, masks, route).sum().backward()
    for need, part, whole, leaf in zip(needed, some, both, (x, memory)):
        assert torch.equal(part, whole) if need else part.shape == (0, 0)
        assert (leaf.grad is not None) == need


def test_in_place_refuses_to_lose_a_gradient():
    y, x, memory, masks, route = make(3, 33, 4, 2, 9)
    memory.requires_grad_()
    with pytest.raises(RuntimeError, match="masked_linear_ records no gradient"):
        ops.masked_linear_(y, x, memory, masks, route)
    with torch.no_grad():
        ops.masked_linear_(y, x, memory, masks, route)
    with torch.inference_mode():
        ops.masked_linear_(y.clone(), x, memory, masks, route)


def test_in_place_write_is_seen_by_autograd():
    """A tensor saved for a backward pass and then written must raise there, whichever backend wrote it."""
    y, x, memory, masks, route = make(3, 33, 4, 2, 9)
    scale = torch.ones(3, 4, requires_grad=True)
    saved = scale * y
    with torch.no_grad():
        ops.masked_linear_(y, x, memory, masks, route)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.sum().backward()


@pytest.mark.parametrize(
    "name, position, wrong",
    [
        ("y", 0, torch.zeros(3, 5)),
        ("x", 1, torch.zeros(3, 40, dtype=torch.int32)),
        ("memory", 2, torch.zeros(39, 4)),
        ("masks", 3, torch.zeros(2, 3, dtype=torch.int32)),
        ("route", 4, torch.zeros(3, dtype=torch.int64)),
    ],
)
def test_a_wrong_argument_is_named(name, position, wrong):
    arguments = list(make(3, 40, 4, 2, 10))
    arguments[position] = wrong
    for op in (ops.masked_linear, ops.masked_linear_):
        with pytest.raises(ValueError, match=f"^{name} must"):
            op(*arguments)
