"""mask_overlap against Python's own bit count; everything is exact."""

import pytest
import torch
from cases import WIDTHS, each_backend, generator, property_test, random_masks
from hypothesis import given
from hypothesis import strategies as st

from corrigenda.kernels import dispatch, ops, reference


def slow_mask_overlap(query, stored, valid=None, query_group=None, stored_group=None):
    visible = len(stored) if valid is None else min(int(valid), len(stored))
    found = []
    for b, mask in enumerate(query.tolist()):
        best = (-1, 0)
        for n in range(visible):
            if query_group is not None and query_group[b] != stored_group[n]:
                continue
            shared = sum((p & q & 0xFFFFFFFF).bit_count() for p, q in zip(mask, stored[n].tolist()))
            if best[0] < 0 or shared > best[1]:
                best = (n, shared)
        found.append(best)
    return [index for index, _ in found], [overlap for _, overlap in found]


def check(backend, query, stored, *options):
    before = query.clone(), stored.clone()
    with dispatch.use(backend):
        index, overlap = ops.mask_overlap(query, stored, *options)
    assert index.dtype == overlap.dtype == torch.int32
    assert (index.tolist(), overlap.tolist()) == slow_mask_overlap(query, stored, *options)
    assert torch.equal(query, before[0]) and torch.equal(stored, before[1])


def count(n):
    return torch.tensor([n], dtype=torch.int32)


def groups(n, seed):
    return torch.randint(0, 3, (n,), generator=generator(seed), dtype=torch.int32)


@each_backend("mask_overlap")
@property_test
@given(data=st.data())
def test_equals_python_bit_count(backend, data):
    width = data.draw(st.sampled_from(WIDTHS))
    batch, rows = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 20))
    seed = data.draw(st.integers(0, 1000))
    query, stored = random_masks(batch, width, seed), random_masks(rows, width, seed + 1)
    valid = data.draw(st.none() | st.integers(0, rows + 3).map(count))
    options = [valid]
    if data.draw(st.booleans()):
        options += [groups(batch, seed), groups(rows, seed + 1)]
    check(backend, query, stored, *options)


@each_backend("mask_overlap")
def test_ties_go_to_the_lowest_row(backend):
    stored = random_masks(6, 70, seed=0, k=30)
    stored[4] = stored[2]
    check(backend, stored[[4, 2]], stored)
    with dispatch.use(backend):
        index, overlap = ops.mask_overlap(stored[[4]], stored)
        assert (index.item(), overlap.item()) == (2, 30)
        index, overlap = ops.mask_overlap(torch.zeros_like(stored[:1]), stored)
        assert (index.item(), overlap.item()) == (0, 0)  # a visible row that shares nothing is still the best


@each_backend("mask_overlap")
def test_sign_bits_count(backend):
    full = torch.full((3, 4), -1, dtype=torch.int32)
    check(backend, full, full)
    check(backend, torch.full((1, 1), -(2**31), dtype=torch.int32), full[:, :1])


@each_backend("mask_overlap")
@pytest.mark.parametrize("valid", [None, -1, 0, 3])
def test_no_visible_row(backend, valid):
    query, stored = random_masks(2, 40, seed=1), random_masks(5, 40, seed=2)
    check(backend, query, stored[:0], None if valid is None else count(valid))
    check(backend, query, stored, count(0))
    stranger, resident = torch.full((2,), 7, dtype=torch.int32), torch.zeros(5, dtype=torch.int32)
    check(backend, query, stored, None if valid is None else count(valid), stranger, resident)
    with dispatch.use(backend):
        index, overlap = ops.mask_overlap(query, stored, None, stranger, resident)
    assert index.tolist() == [-1, -1] and overlap.tolist() == [0, 0]


@each_backend("mask_overlap")
def test_views_with_odd_offsets(backend):
    wide = random_masks(9, 32 * 7, seed=3)
    check(backend, wide[1::2, 1::2], wide[::3, 1::2])


def test_reference_chunks_agree(monkeypatch):
    """The best row and its ties must not depend on where the reference cuts the stored masks."""
    query, stored = random_masks(3, 64, seed=4, k=20), random_masks(23, 64, seed=5, k=20)
    stored[17] = stored[9] = query[0]
    monkeypatch.setattr(reference, "OVERLAP_WORDS", 4 * 3 * 2)
    for valid in (None, count(0), count(10), count(18), count(99)):
        check("reference", query, stored, valid, groups(3, 6), groups(23, 7))
        check("reference", query, stored, valid)


@pytest.mark.parametrize(
    "name, change",
    [
        ("query", {"query": torch.zeros(2, 3)}),
        ("stored", {"stored": torch.zeros(4, 2, dtype=torch.int32)}),
        ("valid", {"valid": torch.tensor(2, dtype=torch.int32)}),
        ("query_group and stored_group", {"query_group": groups(2, 0)}),
        ("stored_group", {"query_group": groups(2, 0), "stored_group": groups(3, 0)}),
    ],
)
def test_a_wrong_argument_is_named(name, change):
    arguments = {
        "query": torch.zeros(2, 3, dtype=torch.int32),
        "stored": torch.zeros(4, 3, dtype=torch.int32),
        **change,
    }
    with pytest.raises(ValueError, match=f"^{name} must"):
        ops.mask_overlap(**arguments)
