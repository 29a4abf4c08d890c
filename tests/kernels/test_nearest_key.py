"""nearest_key against distances in float64 NumPy."""

import numpy as np
import pytest
import torch
from cases import FEATURE_DTYPES, dyadic, each_backend, generator, normal, property_test
from hypothesis import given
from hypothesis import strategies as st

from corrigenda.kernels import dispatch, ops


def slow_nearest_key(query, stored, radius, cosine, valid=None, query_group=None, stored_group=None):
    q, k = query.double().numpy(), stored.double().numpy()
    visible = len(k) if valid is None else min(max(int(valid), 0), len(k))
    found = []
    for b in range(len(q)):
        best = (np.inf, -1)
        for n in range(visible):
            if query_group is not None and query_group[b] != stored_group[n]:
                continue
            if cosine:
                norms = np.linalg.norm(q[b]) * np.linalg.norm(k[n])
                distance = max(1 - (q[b] @ k[n] / norms if norms > 0 else 0), 0)
            else:
                distance = np.linalg.norm(q[b] - k[n])
            if distance < best[0]:
                best = (distance, n)
        found.append(best)
    index = [n for _, n in found]
    inside = [n >= 0 and (radius is None or np.float32(d) <= radius[n].item()) for d, n in found]
    return index, [d for d, _ in found], [n if near else -1 for n, near in zip(index, inside)]


def check(backend, query, stored, radius, cosine, *options, exact=True):
    with dispatch.use(backend):
        index, distance, route = ops.nearest_key(query, stored, radius, cosine, *options)
    assert (index.dtype, distance.dtype, route.dtype) == (torch.int32, torch.float32, torch.int32)
    expected = slow_nearest_key(query, stored, radius, cosine, *options)
    np.testing.assert_allclose(distance, expected[1], rtol=1e-5, atol=1e-5)
    if exact:
        assert index.tolist() == expected[0] and route.tolist() == expected[2]


@each_backend("nearest_key")
@property_test
@given(
    batch=st.integers(0, 4),
    rows=st.integers(0, 12),
    width=st.sampled_from([1, 2, 31, 33, 97]),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_equals_distances_in_numpy(backend, batch, rows, width, seed, data):
    dtype = data.draw(st.sampled_from(FEATURE_DTYPES))
    # Multiples of 1/16: their squares' sums are exact in float32, so that ties are ties on every backend.
    query, stored = dyadic(batch, width, seed=seed, dtype=dtype), dyadic(rows, width, seed=seed + 100, dtype=dtype)
    if batch and rows:
        stored[rows // 2] = query[0]
        stored[-1] = query[-1]
    radius = data.draw(st.sampled_from([None, torch.rand(rows, generator=generator(seed)) * 10]))
    options = [data.draw(st.none() | st.integers(0, 14).map(lambda n: torch.tensor([n], dtype=torch.int32)))]
    if data.draw(st.booleans()):
        options += [torch.randint(0, 2, (n,), generator=generator(3), dtype=torch.int32) for n in (batch, rows)]
    check(backend, query, stored, radius, False, *options)
    check(backend, query, stored, radius, True, *options, exact=False)


@each_backend("nearest_key")
@pytest.mark.parametrize("cosine", [False, True])
def test_a_key_is_nearest_to_itself(backend, cosine):
    stored = normal(70, 1536, seed=1)
    radius = torch.full((70,), 1e-3)
    with dispatch.use(backend):
        index, distance, route = ops.nearest_key(stored[::3], stored, radius, cosine)
        assert index.tolist() == route.tolist() == list(range(0, 70, 3))
        assert cosine or distance.eq(0).all()
        away = ops.nearest_key(stored[::3] + 1, stored, radius, cosine)
    assert away[2].eq(-1).all()


@each_backend("nearest_key")
def test_the_lowest_of_equals_is_taken_and_the_radius_is_its_own(backend):
    stored = torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    radius = torch.tensor([9.0, 0.5, 9.0, 9.0])
    check(backend, torch.tensor([[1.25, 0.0], [2.0, 0.0]]), stored, radius, False)
    with dispatch.use(backend):
        index, distance, route = ops.nearest_key(torch.tensor([[2.0, 0.0]]), stored, radius)
    assert (index.tolist(), distance.tolist(), route.tolist()) == ([1], [1.0], [-1])


@each_backend("nearest_key")
def test_what_is_no_number_is_not_seen(backend):
    stored = torch.tensor([[torch.nan, 0.0], [torch.inf, 0.0], [3.0, 0.0]])
    with dispatch.use(backend):
        index, distance, _ = ops.nearest_key(torch.zeros(1, 2), stored)
        assert (index.tolist(), distance.tolist()) == ([2], [3.0])
        index, distance, route = ops.nearest_key(torch.zeros(1, 2), stored[:2])
    assert (index.tolist(), distance.tolist(), route.tolist()) == ([-1], [torch.inf], [-1])


@each_backend("nearest_key")
def test_a_vector_of_length_zero_is_at_distance_one_of_all(backend):
    with dispatch.use(backend):
        index, distance, _ = ops.nearest_key(torch.zeros(1, 5), normal(3, 5, seed=2), None, True)
    assert (index.tolist(), distance.tolist()) == ([0], [1.0])


def test_keys_of_another_dtype_are_refused():
    with pytest.raises(ValueError, match="stored must be float32"):
        ops.nearest_key(torch.zeros(1, 5), torch.zeros(3, 5, dtype=torch.bfloat16))
