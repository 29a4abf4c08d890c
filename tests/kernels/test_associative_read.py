"""associative_read, its in-place form and its gradients against a loop over tokens and rows in float64."""

import numpy as np
import pytest
import torch
from cases import (
    assert_close,
    bank,
    each_backend,
    exact,
    generator,
    normal,
    property_test,
    random_route,
    same_bits,
)
from hypothesis import given
from hypothesis import strategies as st

from corrigenda.kernels import dispatch, ops

BETA = 3.0  # mild: gradients through a saturated softmax are differences of equals, and rounding shows
COUNTS = (0, 1, 2, 7, 8, 9, 17)  # rows of an edit, around the 8 of a page
DTYPES = [  # of y, x and the banks
    (torch.float32, torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16, torch.float32),
    (torch.float16, torch.float16, torch.float32),
]


def make(tokens, counts, width, outputs, seed, dtypes=DTYPES[0]):
    """The op's arguments, all but beta; keys of length about 1, as the editor writes them."""
    y, x = (
        normal(tokens, outputs, seed=seed, dtype=dtypes[0]),
        normal(tokens, width, seed=seed + 1, dtype=dtypes[1]),
    )
    first = torch.rand(tokens, generator=generator(seed)) < 0.3
    keys, values, pages, rows = bank(counts, width, outputs, seed, dtypes[2])
    keys = keys / width**0.5
    return (
        y,
        x,
        first,
        keys,
        values,
        pages,
        rows,
        random_route(tokens, len(counts), seed),
        normal(width, seed=seed + 2),
    )


def softmax(score):
    share = np.exp(score - score.max())
    return share / share.sum()


def slow_rows(pages, rows, edit):
    return [(int(pages[edit, r // 8]), r % 8) for r in range(int(rows[edit]))]


def slow_associative_read(y, x, first, keys, values, pages, rows, route, background, beta):
    out, x, keys, values = exact(y).copy(), exact(x), exact(keys), exact(values)
    for t, edit in enumerate(route.tolist()):
        slots = slow_rows(pages, rows, edit) if edit >= 0 else []
        if slots and first[t]:
            out[t] += values[slots[0]]
        elif len(slots) > 1:
            u = x[t] - exact(background)
            u = u / max(np.linalg.norm(u), 1e-6)
            share = softmax(np.array([beta * keys[slot] @ u for slot in slots[1:]]))
            for p, slot in zip(share, slots[1:]):
                out[t] += p * values[slot]
    return out


def slow_backward(grad, x, first, keys, values, pages, rows, route, background, beta):
    """By the chain rule through explicit Jacobians: softmax's, and that of the normalisation."""
    grad, x, keys, values = exact(grad), exact(x), exact(keys), exact(values)
    dx, dkeys, dvalues = np.zeros_like(x), np.zeros_like(keys), np.zeros_like(values)
    for t, edit in enumerate(route.tolist()):
        slots = slow_rows(pages, rows, edit) if edit >= 0 else []
        if slots and first[t]:
            dvalues[slots[0]] += grad[t]
        elif len(slots) > 1:
            c = x[t] - exact(background)
            norm = max(np.linalg.norm(c), 1e-6)
            u = c / norm
            tangent = (np.eye(len(c)) - (norm > 1e-6) * np.outer(u, u)) / norm
            key = np.array([keys[slot] for slot in slots[1:]])
            value = np.array([values[slot] for slot in slots[1:]])
            share = softmax(beta * key @ u)
            dscore = (np.diag(share) - np.outer(share, share)) @ (value @ grad[t])
            dx[t] = tangent @ (beta * key.T @ dscore)
            for r, slot in enumerate(slots[1:]):
                dkeys[slot] += beta * dscore[r] * u
                dvalues[slot] += share[r] * grad[t]
    return dx, dkeys, dvalues


def check(backend, y, *rest):
    before = y.clone()
    with dispatch.use(backend):
        out = ops.associative_read(y, *rest, BETA)
        inplace = y.clone()
        assert ops.associative_read_(inplace, *rest, BETA) is inplace
        gradients = ops.associative_read_backward(y, *rest, BETA)
    assert out.dtype == y.dtype and out.is_contiguous() and same_bits(y, before)
    assert_close(out, slow_associative_read(y, *rest, BETA))
    assert same_bits(out, inplace)
    x, first, keys, values, _, rows, route, _ = rest
    given_rows = rows[route.long()] if len(rows) else torch.zeros_like(route)
    untouched = (route < 0) | (given_rows == 0) | ((given_rows == 1) & ~first)
    assert same_bits(out[untouched], y[untouched])
    for actual, expected, like in zip(gradients, slow_backward(y, *rest, BETA), (x, keys, values)):
        assert actual.dtype == like.dtype
        assert_close(actual, expected)


@each_backend("associative_read")
@property_test
@given(data=st.data())
def test_equals_a_loop_over_rows(backend, data):
    counts = data.draw(st.lists(st.sampled_from(COUNTS), max_size=4))
    tokens = data.draw(st.integers(0, 8))
    width, outputs = data.draw(st.sampled_from((3, 32, 45))), data.draw(st.sampled_from((1, 6, 33)))
    dtypes = data.draw(st.sampled_from(DTYPES))
    check(backend, *make(tokens, counts, width, outputs, data.draw(st.integers(0, 1000)), dtypes))


@each_backend("associative_read")
def test_model_shape(backend):
    check(backend, *make(12, [6, 3, 11], 1536, 576, 0, DTYPES[2]))


@each_backend("associative_read")
def test_first_position_needs_no_key(backend):
    """Row 0 is read outright, whatever its key and the token's features are, and by no other position."""
    y, x, first, keys, values, pages, rows, _, background = make(4, [5], 16, 3, 1)
    first[:] = torch.tensor([True, False, True, False])
    route = torch.zeros(4, dtype=torch.int32)
    keys[pages[0, 0], 0] = torch.nan
    x[0] = torch.nan
    with dispatch.use(backend):
        out = ops.associative_read(y, x, first, keys, values, pages, rows, route, background, BETA)
        dx, dkeys, _ = ops.associative_read_backward(y, x, first, keys, values, pages, rows, route, background, BETA)
        values[pages[0, 0], 0] += 1
        moved = ops.associative_read(y, x, first, keys, values, pages, rows, route, background, BETA)
    opening = y[first] + values[pages[0, 0], 0] - 1
    torch.testing.assert_close(out[first], opening)
    assert same_bits(out[~first], moved[~first])
    assert dx[first].eq(0).all() and dkeys[pages[0, 0], 0].eq(0).all() and dkeys.isfinite().all()


@each_backend("associative_read")
def test_rows_that_get_nothing_keep_every_bit(backend):
    y, x, _, keys, values, pages, rows, _, background = make(5, [1, 0, 3], 16, 3, 2)
    y[:] = -0.0
    route = torch.tensor([-1, 0, 1, 1, 2], dtype=torch.int32)
    first = torch.tensor([True, False, True, False, False])
    with dispatch.use(backend):
        out = ops.associative_read(y, x, first, keys, values, pages, rows, route, background, BETA)
        inplace = ops.associative_read_(y.clone(), x, first, keys, values, pages, rows, route, background, BETA)
    for result in (out, inplace):
        assert same_bits(result[:4], y[:4])
        assert not same_bits(result[4], y[4])


@each_backend("associative_read")
def test_token_at_or_near_the_background(backend):
    """Without a direction scores are zero and shares equal; nearer than 1e-6 the direction is shortened."""
    y, x, first, *bank, route, background = make(3, [4], 16, 3, 3)
    first[:], route[:] = False, 0
    background[:] = 0.0
    x[0] = 0.0
    x[1] *= 3e-7 / x[1].norm()
    check(backend, y, x, first, *bank, route, background)


@each_backend("associative_read")
def test_large_scores_do_not_overflow(backend):
    y, x, first, keys, *rest = make(6, [9, 3], 16, 3, 4)
    arguments = (x, first, keys * 1000, *rest)
    with dispatch.use(backend):
        out = ops.associative_read(y, *arguments, 100.0)
    assert_close(out, slow_associative_read(y, *arguments, 100.0))


@each_backend("associative_read")
def test_no_edits_and_no_tokens(backend):
    check(backend, *make(3, [], 16, 3, 5))
    check(backend, *make(0, [4], 16, 3, 5))
    y, x, first, keys, values, pages, rows, route, background = make(3, [], 16, 3, 5)
    check(backend, y, x, first, keys[:0], values[:0], pages[:, :0], rows, route, background)


@each_backend("associative_read")
def test_views_with_odd_offsets(backend):
    y, x, first, keys, values, pages, rows, route, background = make(10, [9, 2, 4], 40, 12, 6)
    arguments = (x[1::2, 1::2], first[::2], keys[..., 1::2], values[..., 1::2], pages, rows, route[::2])
    check(backend, y[1::2, 1::2], *arguments, background[1::2])
    wide, expected = y.clone(), y.clone()
    with dispatch.use(backend):
        expected[1::2, 1::2] = ops.associative_read(y[1::2, 1::2], *arguments, background[1::2], BETA)
        ops.associative_read_(wide[1::2, 1::2], *arguments, background[1::2], BETA)
    assert same_bits(wide, expected)


def test_gradcheck():
    y, x, first, keys, values, pages, rows, route, background = make(7, [1, 3, 9], 6, 4, 7, (torch.float64,) * 3)
    leaves = [tensor.nan_to_num().requires_grad_() for tensor in (y, x, keys, values)]

    def read(y, x, keys, values):
        return ops.associative_read(y, x, first, keys, values, pages, rows, route, background, 2.0)

    assert torch.autograd.gradcheck(read, leaves)


@each_backend("associative_read_backward")
@pytest.mark.parametrize("needed", [(True, True, True), (False, False, True), (True, False, False), (False,) * 3])
def test_only_needed_gradients_are_computed(backend, needed):
    y, x, first, keys, values, *rest = make(8, [3, 9], 16, 5, 12)
    upstream = normal(8, 5, seed=9)
    whole = slow_backward(upstream, x, first, keys, values, *rest, BETA)
    leaves = (x, keys, values)
    with dispatch.use(backend):
        some = ops.associative_read_backward(upstream, x, first, keys, values, *rest, BETA, needed)
        for leaf, need in zip(leaves, needed):
            leaf.requires_grad_(need)
        ops.associative_read(y.requires_grad_(), x, first, keys, values, *rest, BETA).backward(upstream)
    assert torch.equal(y.grad, upstream)
    for leaf, need, gradient, expected in zip(leaves, needed, some, whole):
        if need:
            assert_close(gradient, expected)
            assert torch.equal(leaf.grad, gradient)
        else:
            assert gradient.shape == (0,) * leaf.dim() and leaf.grad is None


def test_in_place_refuses_to_lose_a_gradient():
    y, x, first, keys, values, *rest = make(3, [2], 16, 3, 10)
    values.requires_grad_()
    with pytest.raises(RuntimeError, match="associative_read_ records no gradient"):
        ops.associative_read_(y, x, first, keys, values, *rest, BETA)


@pytest.mark.parametrize(
    "name, position, wrong",
    [
        ("y", 0, torch.zeros(3, 5)),
        ("x", 1, torch.zeros(3)),
        ("first", 2, torch.zeros(3, dtype=torch.int32)),
        ("keys", 3, torch.zeros(4, 7, 16)),
        ("values", 4, torch.zeros(9, 8, 4)),
        ("pages", 5, torch.zeros(2, 1, dtype=torch.int64)),
        ("rows", 6, torch.zeros(3, dtype=torch.int32)),
        ("route", 7, torch.zeros(2, dtype=torch.int32)),
        ("background", 8, torch.zeros(16, dtype=torch.bfloat16)),
    ],
)
def test_a_wrong_argument_is_named(name, position, wrong):
    arguments = [*make(3, [2, 9], 16, 4, 11), BETA]
    arguments[position] = wrong
    for op in (ops.associative_read, ops.associative_read_):
        with pytest.raises(ValueError, match=f"^{name} must"):
            op(*arguments)


@each_backend("associative_read")
def test_values_of_eight_bits_are_scaled(backend):
    y, x, first, keys, values, pages, rows, route, background = make(12, [9, 1, 4], 40, 33, 13)
    scales = values.nan_to_num().abs().amax(-1) / 127
    small = (values / scales[..., None]).nan_to_num().round().to(torch.int8)
    plain = small.float() * scales[..., None]
    rest = (pages, rows, route, background, BETA)
    with dispatch.use(backend):
        out = ops.associative_read(y, x, first, keys, small, *rest, scales)
        inplace = ops.associative_read_(y.clone(), x, first, keys, small, *rest, scales)
    assert_close(out, slow_associative_read(y, x, first, keys, plain, *rest))
    assert same_bits(out, inplace)


def test_scales_go_with_eight_bits():
    y, x, first, keys, values, *rest = make(3, [2], 16, 3, 14)
    small, scales = values.nan_to_num().to(torch.int8), torch.ones(values.shape[:2])
    for wrong in ((values, scales), (small, None)):
        with pytest.raises(ValueError, match=r"^scales must be given with int8 values, and with no others$"):
            ops.associative_read(y, x, first, keys, wrong[0], *rest, BETA, wrong[1])
    with pytest.raises(RuntimeError, match="no gradient through int8"):
        ops.associative_read(y, x.requires_grad_(), first, keys, small, *rest, BETA, scales)
    with pytest.raises(ValueError, match=r"^values must be float32 or"):
        ops.associative_read_backward(y, x.detach(), first, keys, small, *rest, BETA)
