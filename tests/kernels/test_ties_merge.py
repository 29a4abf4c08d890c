"""ties_merge against a loop over entries in Python."""

import numpy as np
import pytest
import torch
from cases import TOLERANCE, assert_close, dyadic, each_backend, exact, normal, property_test
from hypothesis import given
from hypothesis import strategies as st

from corrigenda.kernels import dispatch, ops


def slow_ties_merge(deltas, weights, densities):
    shards = exact(deltas).reshape(len(deltas), -1)
    weights, entries = exact(weights), shards.shape[1]
    trimmed = np.zeros_like(shards)
    for s, shard in enumerate(shards):
        keep = max(1, int(densities[s] * entries))
        magnitudes = [np.inf if np.isnan(value) else abs(value) for value in shard]
        threshold = sorted(magnitudes, reverse=True)[keep - 1] if entries else 0
        for i, magnitude in enumerate(magnitudes):
            trimmed[s, i] = shard[i] if magnitude >= threshold else 0
    merged = np.zeros(entries)
    for i in range(entries):
        parts = [weight * value for weight, value in zip(weights, trimmed[:, i])]
        if np.isnan(sum(parts)):
            merged[i] = np.nan
            continue
        sign = 1 if sum(parts) >= 0 else -1
        agreeing = [(w, part) for w, part in zip(weights, parts) if part * sign > 0]
        mass = sum(w for w, _ in agreeing)
        merged[i] = sum(part for _, part in agreeing) / mass if mass else 0
    return merged.reshape(deltas.shape[1:])


def check(backend, deltas, weights, densities):
    weights = torch.tensor(weights)
    with dispatch.use(backend):
        merged = ops.ties_merge(deltas, weights, densities)
    assert merged.dtype == deltas.dtype
    expected = slow_ties_merge(deltas, weights, densities)
    assert_close(merged, expected)
    np.testing.assert_array_equal(exact(merged) == 0, expected == 0)


@each_backend("ties_merge")
@property_test
@given(data=st.data())
def test_equals_a_loop_over_entries(backend, data):
    shape = data.draw(st.sampled_from(((1,), (7,), (5, 6), (3, 4, 5), (33, 7))))
    shards = data.draw(st.integers(1, 5))
    dtype = data.draw(st.sampled_from((torch.float32, torch.bfloat16, torch.float16)))
    steps = data.draw(st.sampled_from((1, 64)))  # few steps: ties, zeros and opposite deltas
    # Weights that are exact: float32 and Python then cancel in the same entries.
    weights = data.draw(st.lists(st.sampled_from((0.25, 0.5, 1.0)), min_size=shards, max_size=shards))
    densities = data.draw(st.lists(st.floats(0.01, 1.0), min_size=shards, max_size=shards))
    deltas = dyadic(shards, *shape, seed=data.draw(st.integers(0, 1000)), dtype=dtype, steps=steps)
    check(backend, deltas, weights, densities)


@each_backend("ties_merge")
def test_wise_setting(backend):
    check(backend, normal(2, 96, 64, seed=0, dtype=torch.bfloat16), [0.5, 0.5], [0.53, 0.53])
    check(backend, normal(3, 96, 64, seed=1), [0.4, 0.4, 0.6], [0.2, 0.53, 1.0])


@each_backend("ties_merge")
def test_zero_sum_counts_as_plus(backend):
    deltas = torch.tensor([[2.0, -2.0, 0.0], [-2.0, 2.0, 0.0]])
    with dispatch.use(backend):
        assert ops.ties_merge(deltas, torch.ones(2), [1.0, 1.0]).tolist() == [2.0, 2.0, 0.0]


@each_backend("ties_merge")
def test_entries_tied_at_the_threshold_are_all_kept(backend):
    deltas = torch.tensor([[1.0, -1.0, 1.0, 0.5]])
    with dispatch.use(backend):
        assert ops.ties_merge(deltas, torch.ones(1), [0.5]).tolist() == [1.0, -1.0, 1.0, 0.0]


@each_backend("ties_merge")
def test_count_is_rounded_as_python_rounds(backend):
    """0.53 * 100 is 53 in double precision; through float32 it would be 52."""
    deltas = torch.arange(1.0, 101.0)[None]
    with dispatch.use(backend):
        assert ops.ties_merge(deltas, torch.ones(1), [0.53]).count_nonzero() == 53
        assert ops.ties_merge(deltas, torch.ones(1), [0.001]).count_nonzero() == 1


@each_backend("ties_merge")
def test_zeros_nan_and_empty(backend):
    check(backend, torch.zeros(3, 4, 5), [1.0, 1.0, 1.0], [0.5, 0.5, 0.5])
    check(backend, torch.zeros(2, 0, 5), [1.0, 1.0], [0.5, 0.5])
    check(backend, dyadic(2, 9, seed=2), [0.0, 1.0], [1.0, 1.0])
    deltas = dyadic(2, 20, seed=3)
    deltas[0, 3], deltas[1, 5] = torch.nan, torch.inf
    with dispatch.use(backend):
        merged = ops.ties_merge(deltas, torch.ones(2), [0.3, 0.3])
    np.testing.assert_allclose(
        exact(merged), slow_ties_merge(deltas, torch.ones(2), [0.3, 0.3]), rtol=TOLERANCE[torch.float32]
    )


@each_backend("ties_merge")
def test_view_with_odd_offset(backend):
    check(backend, normal(4, 9, 13, seed=4)[1::2, 1:, 1::2], [0.5, 1.0], [0.4, 0.6])


def test_refuses_to_lose_a_gradient():
    with pytest.raises(RuntimeError, match="ties_merge records no gradient"):
        ops.ties_merge(torch.ones(1, 3, requires_grad=True), torch.ones(1), [0.5])


@pytest.mark.parametrize(
    "name, change",
    [
        ("deltas", {"deltas": torch.ones(0, 3)}),
        ("deltas", {"deltas": torch.ones(2, 3, dtype=torch.int32)}),
        ("weights", {"weights": torch.ones(3)}),
        ("densities", {"densities": [0.5]}),
        ("densities", {"densities": [0.5, 0.0]}),
        ("densities", {"densities": [0.5, 1.1]}),
    ],
)
def test_a_wrong_argument_is_named(name, change):
    arguments = {"deltas": torch.ones(2, 3), "weights": torch.ones(2), "densities": [0.5, 0.5], **change}
    with pytest.raises(ValueError, match=f"^{name} must"):
        ops.ties_merge(**arguments)
