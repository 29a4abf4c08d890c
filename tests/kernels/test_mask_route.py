"""mask_route against the two ops and the comparison that it stands for."""

import pytest
import torch
from cases import dyadic, each_backend, property_test, random_masks
from hypothesis import given
from hypothesis import strategies as st

from corrigenda.kernels import dispatch, ops


def make(lengths, width, stored, k, seed):
    x = dyadic(sum(lengths), width, seed=seed)
    offsets = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return x, offsets, k, None, None, None, random_masks(stored, width, seed, k)


def composed(x, offsets, k, weight, background, permutation, stored, minimum, *visible):
    with dispatch.use("reference"):
        query = ops.topk_mask(x, offsets, k, weight, background, permutation)
        nearest, overlap = ops.mask_overlap(query, stored, *visible)
    return nearest, overlap, torch.where(overlap >= minimum, nearest, -1)


@each_backend("mask_route")
@property_test
@given(data=st.data())
def test_equals_its_parts(backend, data):
    # Powers of two, so that a mean of dyadic features is exact in any order and masks are equal on every backend.
    lengths = data.draw(st.lists(st.sampled_from((1, 2, 4, 8)), max_size=4))
    width = data.draw(st.sampled_from((1, 31, 32, 33, 97, 160)))
    k = data.draw(st.integers(1, width))
    stored = data.draw(st.integers(0, 5))
    seed = data.draw(st.integers(0, 1000))
    permutation = torch.randperm(width, generator=torch.Generator().manual_seed(seed))
    arguments = list(make(lengths, width, stored, k, seed))
    arguments[4:6] = dyadic(width, seed=seed + 1), permutation
    minimum = torch.tensor([data.draw(st.integers(0, k + 1))], dtype=torch.int32)
    visible = (torch.tensor([data.draw(st.integers(0, stored))], dtype=torch.int32), None, None)
    with dispatch.use(backend):
        actual = ops.mask_route(*arguments, minimum, *visible)
    for part, expected in zip(actual, composed(*arguments, minimum, *visible), strict=True):
        assert part.dtype == torch.int32 and torch.equal(part, expected)


@each_backend("mask_route")
def test_a_query_finds_itself_and_the_minimum_decides(backend):
    arguments = make([1, 1], 320, 0, 40, 3)
    stored = ops.topk_mask(*arguments[:6])
    for minimum, expected in ((40, [0, 1]), (41, [-1, -1])):
        with dispatch.use(backend):
            nearest, overlap, route = ops.mask_route(*arguments[:6], stored, torch.tensor([minimum], dtype=torch.int32))
        assert (nearest.tolist(), overlap.tolist(), route.tolist()) == ([0, 1], [40, 40], expected)


@each_backend("mask_route")
def test_groups_hide_strangers(backend):
    arguments = make([1, 1], 64, 0, 8, 4)
    stored = ops.topk_mask(*arguments[:6])
    own, other = (torch.tensor(group, dtype=torch.int32) for group in ([0, 1], [1, 0]))
    with dispatch.use(backend):
        hidden = ops.mask_route(*arguments[:6], stored, torch.tensor([8], dtype=torch.int32), None, own, other)
    assert hidden[0].tolist() == [1, 0] and hidden[2].tolist() == [-1, -1]


def test_a_wrong_argument_is_named():
    arguments = make([1, 1], 64, 3, 8, 5)
    with pytest.raises(ValueError, match=r"^minimum must be int32"):
        ops.mask_route(*arguments, torch.tensor([8]))
    with pytest.raises(ValueError, match=r"^stored must be int32 \[\*, 2\]"):
        ops.mask_route(*arguments[:6], arguments[6][:, :1], torch.tensor([8], dtype=torch.int32))
