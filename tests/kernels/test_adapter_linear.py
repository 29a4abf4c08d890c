"""adapter_linear_ against a loop over tokens in float64."""

import pytest
import torch
from cases import WIDTHS, assert_close, each_backend, exact, normal, property_test, random_route, same_bits
from hypothesis import given
from hypothesis import strategies as st

from corrigenda.kernels import dispatch, ops

SINGLE, BRAIN, HALF = torch.float32, torch.bfloat16, torch.float16
DTYPES = [  # of y, x, and the two factors
    (SINGLE, SINGLE, SINGLE),
    (BRAIN, BRAIN, BRAIN),
    (BRAIN, BRAIN, SINGLE),
    (HALF, HALF, HALF),
    (SINGLE, BRAIN, HALF),
    (SINGLE, SINGLE, BRAIN),
]


def make(tokens, width, outputs, rank, edits, blocks, seed, dtypes=DTYPES[0]):
    y, x = normal(tokens, outputs, seed=seed, dtype=dtypes[0]), normal(tokens, width, seed=seed + 1, dtype=dtypes[1])
    down = normal(blocks, rank, width, seed=seed + 2, dtype=dtypes[2]) / max(1, width) ** 0.5
    up = normal(blocks, rank, outputs, seed=seed + 3, dtype=dtypes[2])
    block_of = random_route(edits, blocks, seed + 4).clamp(min=0) if blocks else torch.zeros(0, dtype=torch.int32)
    return y, x, down, up, block_of, random_route(tokens, len(block_of), seed + 5)


def slow_adapter_linear(y, x, down, up, block_of, route):
    out, x, down, up = exact(y).copy(), exact(x), exact(down), exact(up)
    for t, edit in enumerate(route.tolist()):
        if edit >= 0:
            block = int(block_of[edit])
            for r in range(down.shape[1]):
                out[t] += (x[t] @ down[block, r]) * up[block, r]
    return out


def check(backend, y, x, down, up, block_of, route):
    out = y.clone(memory_format=torch.preserve_format)
    with dispatch.use(backend):
        assert ops.adapter_linear_(out, x, down, up, block_of, route) is out
    routed = route >= 0
    assert_close(out[routed], slow_adapter_linear(y, x, down, up, block_of, route)[routed.numpy()])
    assert same_bits(out[~routed], y[~routed])


@each_backend("adapter_linear_")
@property_test
@given(data=st.data())
def test_equals_a_loop_over_tokens(backend, data):
    tokens, edits, blocks = (data.draw(st.integers(0, most)) for most in (9, 5, 4))
    width, outputs = data.draw(st.sampled_from(WIDTHS)), data.draw(st.sampled_from((1, 5, 32, 2100)))
    rank, dtypes = data.draw(st.integers(1, 9)), data.draw(st.sampled_from(DTYPES))
    check(backend, *make(tokens, width, outputs, rank, edits, blocks, data.draw(st.integers(0, 1000)), dtypes))


@each_backend("adapter_linear_")
def test_model_shape(backend):
    check(backend, *make(37, 1536, 576, 2, 50, 20, 0, DTYPES[2]))


@each_backend("adapter_linear_")
def test_another_adapter_is_not_read_and_rows_without_one_stay(backend):
    y, x, down, up, block_of, _ = make(6, 33, 70, 3, 4, 4, 3)
    block_of = torch.tensor([2, 0, 2, 1], dtype=torch.int32)
    route = torch.tensor([0, -1, 2, 1, -1, 0], dtype=torch.int32)
    down[[1, 3]] = up[[1, 3]] = torch.nan  # of an edit that nobody asks, and of none
    x[route < 0] = torch.inf
    y[1, 0], y[4] = -0.0, torch.nan
    check(backend, y, x, down, up, block_of, route)


@each_backend("adapter_linear_")
def test_views_whose_rows_and_columns_lie_apart(backend):
    y, x, down, up, block_of, route = make(9, 97, 40, 2, 3, 3, 4, DTYPES[1])
    wide = normal(9, 80, seed=9, dtype=torch.bfloat16)
    view = wide[:, ::2].copy_(y)
    between = wide[:, 1::2].clone()
    with dispatch.use(backend):
        ops.adapter_linear_(view, x.repeat(1, 2)[:, 97:], down, up, block_of, route)
        ops.adapter_linear_(y, x, down, up, block_of, route)
        turned = x.T.contiguous().T
    assert same_bits(view.contiguous(), y) and same_bits(wide[:, 1::2].contiguous(), between)
    again = wide[:, 1::2].copy_(wide[:, ::2])
    with dispatch.use(backend):
        ops.adapter_linear_(again, turned, down, up, block_of, route)
        ops.adapter_linear_(y, x, down, up, block_of, route)
    assert same_bits(again.contiguous(), y)


@each_backend("adapter_linear_")
def test_a_token_gets_the_same_alone_and_among_others(backend):
    y, x, down, up, block_of, route = make(23, 160, 96, 4, 6, 3, 5)
    together = y.clone()
    with dispatch.use(backend):
        ops.adapter_linear_(together, x, down, up, block_of, route)
        for t in range(len(x)):
            alone = ops.adapter_linear_(y[t : t + 1].clone(), x[t : t + 1], down, up, block_of, route[t : t + 1])
            assert_close(alone, exact(together[t : t + 1]))


@each_backend("adapter_linear_")
def test_no_edits_and_no_tokens(backend):
    y, x, down, up, block_of, route = make(3, 8, 5, 2, 0, 2, 6)
    before = y.clone()
    with dispatch.use(backend):
        ops.adapter_linear_(y, x, down, up, block_of, torch.full((3,), -1, dtype=torch.int32))
        ops.adapter_linear_(y[:0], x[:0], down, up, block_of, route[:0])
    assert same_bits(y, before)


def test_a_block_or_an_edit_that_is_not_there_is_named():
    y, x, down, up, block_of, route = make(3, 8, 5, 2, 4, 2, 7)
    with dispatch.use("native"), pytest.raises(RuntimeError, match="route must name one of 4 edits or be -1, not 4"):
        ops.adapter_linear_(y, x, down, up, block_of, torch.full_like(route, 4))
    with dispatch.use("native"), pytest.raises(RuntimeError, match="block_of must name one of 2 blocks, not 2"):
        ops.adapter_linear_(y, x, down, up, block_of + 2, torch.zeros_like(route))


def test_wrong_arguments_name_themselves():
    y, x, down, up, block_of, route = make(3, 8, 5, 2, 4, 2, 8)
    with pytest.raises(ValueError, match=r"up must be float32 \[2, 2, \*\]"):
        ops.adapter_linear_(y, x, down, up.double(), block_of, route)
    with pytest.raises(ValueError, match=r"down must be"):
        ops.adapter_linear_(y, x, down[:, :, :-1], up, block_of, route)
    with pytest.raises(RuntimeError, match="adapter_linear_ records no gradient"):
        ops.adapter_linear_(y, x, down.requires_grad_(), up, block_of, route)
