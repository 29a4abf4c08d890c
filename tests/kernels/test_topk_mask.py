"""topk_mask against sorting in Python, exactly: the features are such that no order of addition matters."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from cases import FEATURE_DTYPES, WIDTHS, bits, dyadic, each_backend, exact, generator, normal, property_test
from hypothesis import given
from hypothesis import strategies as st

from corrigenda.kernels import dispatch, ops, reference


def slow_topk_mask(x, offsets, k, weight=None, background=None, permutation=None):
    """bool [B, D], by a sort of (magnitude, index) pairs; float32 where the op divides and subtracts."""
    x, offsets, width = exact(x), offsets.tolist(), x.shape[1]
    weight = np.ones(len(x)) if weight is None else exact(weight)
    chosen = np.zeros((len(offsets) - 1, width), dtype=bool)
    for b, (start, end) in enumerate(pairwise(offsets)):
        mass = weight[start:end].sum()
        pooled = np.zeros(width, dtype=np.float32)
        if mass != 0:
            with np.errstate(invalid="ignore"):
                total = (weight[start:end, None] * x[start:end]).sum(0)
                pooled = np.float32(total) / np.float32(mass)
        if background is not None:
            pooled = pooled - background.numpy()
        magnitude = [np.inf if np.isnan(value) else abs(value) for value in pooled]
        order = sorted(range(width), key=lambda i: (-magnitude[i], i))
        for i in order[:k]:
            chosen[b, i if permutation is None else int(permutation[i])] = True
    return chosen


def check(backend, x, offsets, k, *options):
    with dispatch.use(backend):
        masks = ops.topk_mask(x, offsets, k, *options)
    width = x.shape[1]
    assert masks.dtype == torch.int32 and masks.shape == (len(offsets) - 1, (width + 31) // 32)
    np.testing.assert_array_equal(bits(masks, width), slow_topk_mask(x, offsets, k, *options))
    np.testing.assert_array_equal(bits(masks, 32 * masks.shape[1])[:, width:], False)


def offsets_of(*lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


@each_backend("topk_mask")
@property_test
@given(data=st.data())
def test_equals_a_sort(backend, data):
    width = data.draw(st.sampled_from(WIDTHS))
    lengths = data.draw(st.lists(st.integers(0, 5), max_size=4))
    k = data.draw(st.integers(1, width))
    seed = data.draw(st.integers(0, 1000))
    dtype = data.draw(st.sampled_from(FEATURE_DTYPES))
    steps = data.draw(st.sampled_from((1, 64)))  # few steps: many ties
    x = dyadic(sum(lengths), width, seed=seed, dtype=dtype, steps=steps)
    weight = dyadic(len(x), seed=seed + 1).abs() if data.draw(st.booleans()) else None
    background = dyadic(width, seed=seed + 2, steps=steps) if data.draw(st.booleans()) else None
    permutation = torch.randperm(width, generator=generator(seed)) if data.draw(st.booleans()) else None
    check(backend, x, offsets_of(*lengths), k, weight, background, permutation)


@each_backend("topk_mask")
def test_ties_go_to_the_lowest_index(backend):
    x = torch.ones(2, 40)
    x[0, 1::2] = -1.0
    x[1] = 0.0
    check(backend, x, offsets_of(1, 1), 7)
    with dispatch.use(backend):
        assert ops.topk_mask(x, offsets_of(1, 1), 7).tolist() == [[127, 0], [127, 0]]


@each_backend("topk_mask")
def test_nan_counts_as_infinite(backend):
    x = dyadic(3, 33, seed=0)
    x[0, 5], x[0, 9], x[0, 2] = torch.nan, torch.inf, -torch.inf
    x[1] = torch.nan
    for k in (1, 2, 3, 4, 33):
        check(backend, x, offsets_of(1, 1, 1), k)


@each_backend("topk_mask")
def test_sequences_keep_to_themselves(backend):
    """A NaN stays in its sequence, and tokens that no sequence owns are not read."""
    x = dyadic(6, 40, seed=1)
    x[0] = x[3] = x[5] = torch.nan
    check(backend, x, torch.tensor([1, 3, 3, 4, 5], dtype=torch.int32), 9)


@each_backend("topk_mask")
def test_empty_and_weightless_sequences_pool_to_zero(backend):
    x, background = dyadic(2, 50, seed=2), dyadic(50, seed=3)
    check(backend, x, offsets_of(0, 2, 0), 10, torch.zeros(2), background)
    assert reference.pool(x, offsets_of(0, 2, 0), torch.zeros(2)).eq(0).all()


@each_backend("topk_mask")
def test_no_sequences(backend):
    check(backend, torch.empty(0, 33), offsets_of(), 3)
    check(backend, dyadic(4, 33, seed=0), offsets_of(), 3)


@each_backend("topk_mask")
def test_view_with_odd_offset(backend):
    x = dyadic(5, 2 * 65 + 1, seed=4)[:, 1::2]
    check(backend, x, offsets_of(2, 3), 20)


@each_backend("topk_mask")
@pytest.mark.parametrize("dtype", FEATURE_DTYPES)
def test_model_shape(backend, dtype):
    width, k = 14336, 4096
    x = dyadic(6, width, seed=5, dtype=dtype)
    background, permutation = dyadic(width, seed=6), torch.randperm(width, generator=generator(7))
    check(backend, x, offsets_of(1, 5), k, None, background, permutation)


def test_pool_is_the_weighted_mean():
    x, weight = normal(7, 12, seed=8), torch.rand(7, generator=generator(9))
    pooled = reference.pool(x, offsets_of(3, 4), weight)
    for b, rows in enumerate((slice(0, 3), slice(3, 7))):
        mean = np.average(exact(x)[rows], axis=0, weights=exact(weight)[rows])
        np.testing.assert_allclose(exact(pooled[b]), mean, rtol=1e-5, atol=1e-6)


@property_test
@given(width=st.sampled_from(WIDTHS), rows=st.integers(0, 4), seed=st.integers(0, 1000))
def test_pack_and_unpack(width, rows, seed):
    chosen = torch.rand(rows, width, generator=generator(seed)) < 0.5
    masks = reference.pack_mask(chosen)
    np.testing.assert_array_equal(bits(masks, width), chosen.numpy())
    assert torch.equal(reference.unpack_mask(masks, width), chosen)


@pytest.mark.parametrize(
    "name, change",
    [
        ("x", {"x": torch.zeros(4, 8, dtype=torch.int32)}),
        ("x", {"x": torch.zeros(4)}),
        ("offsets", {"offsets": torch.tensor([0, 4])}),
        ("offsets", {"offsets": torch.zeros(0, dtype=torch.int32)}),
        ("k", {"k": 0}),
        ("k", {"k": 9}),
        ("weight", {"weight": torch.ones(3)}),
        ("background", {"background": torch.ones(8, dtype=torch.bfloat16)}),
        ("permutation", {"permutation": torch.arange(7)}),
    ],
)
def test_a_wrong_argument_is_named(name, change):
    arguments = {"x": torch.zeros(4, 8), "offsets": offsets_of(4), "k": 3, **change}
    with pytest.raises(ValueError, match=f"^{name} must"):
        ops.topk_mask(**arguments)
