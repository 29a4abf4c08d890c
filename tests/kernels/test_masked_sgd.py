"""masked_sgd_ against a loop over entries in float64."""

import numpy as np
import pytest
import torch
from cases import assert_close, bits, each_backend, exact, normal, property_test, random_masks, same_bits
from hypothesis import given
from hypothesis import strategies as st

from corrigenda.kernels import dispatch, ops


def slow_masked_sgd(delta, x, gradient, masks, base, learning_rate, decay, decay_masked, limit):
    free = bits(masks, delta.shape[1])
    updated = exact(delta).copy()
    for i in range(updated.shape[0]):
        for j in range(updated.shape[1]):
            shrunk = decay * (updated[i, j] + (0.0 if base is None else exact(base)[i, j]))
            step = learning_rate * float(exact(x)[:, i] @ exact(gradient)[:, j]) if free[i, j] else 0.0
            step += shrunk if free[i, j] or not decay_masked else 0.0
            updated[i, j] = np.clip(updated[i, j] - step, -limit, limit)
    return updated


@each_backend("masked_sgd_")
@property_test
@given(data=st.data())
def test_equals_a_loop_over_entries(backend, data):
    tokens, width, outputs = data.draw(st.sampled_from(((0, 3, 5), (1, 1, 1), (4, 7, 33), (9, 33, 64), (17, 5, 97))))
    dtype = data.draw(st.sampled_from((torch.float32, torch.bfloat16, torch.float16)))
    seed = data.draw(st.integers(0, 1000))
    delta = normal(width, outputs, seed=seed)
    arguments = (
        normal(tokens, width, seed=seed + 1, dtype=dtype),
        normal(tokens, outputs, seed=seed + 2, dtype=data.draw(st.sampled_from((torch.float32, dtype)))),
        random_masks(width, outputs, seed=seed + 3),
        normal(width, outputs, seed=seed + 4, dtype=dtype) if data.draw(st.booleans()) else None,
        data.draw(st.sampled_from((0.0, 0.3, 1.0))),
        data.draw(st.sampled_from((0.0, 0.25))),
        data.draw(st.booleans()),
        data.draw(st.sampled_from((0.5, float("inf")))),
    )
    expected = slow_masked_sgd(delta, *arguments)
    with dispatch.use(backend):
        assert ops.masked_sgd_(delta, *arguments) is delta
    assert_close(delta, expected)


@each_backend("masked_sgd_")
def test_what_no_bit_allows_keeps_its_bits(backend):
    delta, masks = normal(6, 40, seed=0), random_masks(6, 40, seed=1)
    delta[:, 3] = -0.0
    before = delta.clone()
    with dispatch.use(backend):
        ops.masked_sgd_(delta, normal(5, 6, seed=2), normal(5, 40, seed=3), masks, None, 1.0)
    frozen = torch.from_numpy(~bits(masks, 40))
    assert same_bits(delta[frozen], before[frozen])
    assert (delta != before)[~frozen].any()


@each_backend("masked_sgd_")
def test_views_are_read_and_written_where_they_are(backend):
    whole = normal(9, 90, seed=0)
    delta, rest = whole[1::2, 5:45], whole[::2].clone()
    x, gradient = normal(12, 9, seed=1)[::3, 4:8], normal(40, 4, seed=2).T
    masks = random_masks(4, 40, seed=3)
    expected = slow_masked_sgd(delta, x, gradient, masks, None, 0.5, 0.1, False, 2.0)
    with dispatch.use(backend):
        ops.masked_sgd_(delta, x, gradient, masks, None, 0.5, 0.1, False, 2.0)
    assert_close(delta, expected)
    assert same_bits(whole[::2], rest)


def test_refuses_to_lose_a_gradient():
    delta = torch.zeros(2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="masked_sgd_ records no gradient"):
        ops.masked_sgd_(delta, torch.ones(1, 2), torch.ones(1, 3), torch.ones(2, 1, dtype=torch.int32), None, 1.0)


@pytest.mark.parametrize(
    "name, change",
    [
        ("delta", {"delta": torch.ones(4, 40, dtype=torch.bfloat16)}),
        ("x", {"x": torch.ones(3, 5)}),
        ("gradient", {"gradient": torch.ones(2, 40)}),
        ("masks", {"masks": torch.ones(4, 1, dtype=torch.int32)}),
        ("base", {"base": torch.ones(40, 4)}),
        ("decay", {"decay": 1.0}),
        ("limit", {"limit": -1.0}),
    ],
)
def test_a_wrong_argument_is_named(name, change):
    arguments = {
        "delta": torch.ones(4, 40),
        "x": torch.ones(3, 4),
        "gradient": torch.ones(3, 40),
        "masks": torch.ones(4, 2, dtype=torch.int32),
        "base": None,
        "learning_rate": 1.0,
        **change,
    }
    with pytest.raises(ValueError, match=f"^{name} must"):
        ops.masked_sgd_(**arguments)
