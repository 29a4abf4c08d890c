"""token_overlap against sets and float32 arithmetic in NumPy; scores are exact, for each is one division."""

import numpy as np
import torch
from cases import each_backend, generator, property_test
from hypothesis import given
from hypothesis import strategies as st

from corrigenda.kernels import dispatch, ops

VOCABULARY = 40


def slow_token_overlap(query, stored, rarity, extra, valid=None, query_group=None, stored_group=None):
    visible = len(stored) if valid is None else min(int(valid), len(stored))
    found = []
    for b, asked in enumerate(map(set, query)):
        scores = []
        for n in range(visible):
            if query_group is not None and query_group[b] != stored_group[n]:
                continue
            shared = sum(rarity[t] for t in asked & set(stored[n]))
            own, rest = sum(rarity[t] for t in stored[n]), sum(rarity[t] for t in asked) - shared
            mass = np.float32(own) + np.float32(np.float32(extra) * np.float32(rest))
            scores.append((np.float32(shared) / mass if mass > 0 else np.float32(0), n))
        best = max(scores, key=lambda pair: (pair[0], -pair[1]), default=(np.float32(0), -1))
        others = [score for score, n in scores if n != best[1]]
        found.append((best[1], best[0], max(others, default=np.float32(0))))
    return found


def padded(rows):
    """Lists of ids as the op takes them, wider than the longest."""
    width = max(map(len, rows), default=0) + 1
    table = torch.full((len(rows), width), -1, dtype=torch.int32)
    for i, row in enumerate(rows):
        table[i, : len(row)] = torch.tensor(row, dtype=torch.int32)
    return table


def check(backend, query, stored, rarity, extra, *options):
    with dispatch.use(backend):
        index, score, runner_up = ops.token_overlap(
            padded(query), padded(stored), torch.tensor(rarity, dtype=torch.int32), extra, *options
        )
    assert (index.dtype, score.dtype, runner_up.dtype) == (torch.int32, torch.float32, torch.float32)
    expected = slow_token_overlap(query, stored, rarity, extra, *options)
    for b, (best, top, second) in enumerate(expected):
        assert index[b] == best
        np.testing.assert_allclose([score[b], runner_up[b]], [top, second], rtol=3e-7, atol=0)


rows_of_tokens = st.lists(st.lists(st.integers(0, VOCABULARY - 1), max_size=9, unique=True), max_size=7)


@each_backend("token_overlap")
@property_test
@given(query=rows_of_tokens, stored=rows_of_tokens, extra=st.sampled_from([0.0, 0.125, 1.0]), data=st.data())
def test_equals_sets(backend, query, stored, extra, data):
    # Powers of two keep every score exact, so that equal scores are ties on every backend.
    rarity = [1 << data.draw(st.integers(0, 6)) for _ in range(VOCABULARY)]
    options = [data.draw(st.none() | st.integers(0, 9).map(lambda n: torch.tensor([n], dtype=torch.int32)))]
    if data.draw(st.booleans()):
        options += [
            torch.randint(0, 2, (len(rows),), generator=generator(3), dtype=torch.int32) for rows in (query, stored)
        ]
    check(backend, query, stored, rarity, extra, *options)


@each_backend("token_overlap")
def test_ties_go_to_the_lowest_row_and_the_other_is_the_runner_up(backend):
    check(backend, [[1, 2, 3]], [[5], [1, 2], [1, 2]], [1] * VOCABULARY, 0.0)


@each_backend("token_overlap")
def test_a_long_query_is_not_punished_but_a_long_stored_row_is(backend):
    rarity = torch.ones(VOCABULARY, dtype=torch.int32)
    short, long = padded([[1, 2]]), padded([list(range(20))])
    with dispatch.use(backend):
        assert ops.token_overlap(long, short, rarity, 0.0)[1] == 1.0
        assert ops.token_overlap(short, long, rarity, 0.0)[1] == torch.tensor(0.1)


@each_backend("token_overlap")
def test_rows_without_weight_score_zero(backend):
    check(backend, [[], [1]], [[], [1]], [0] * VOCABULARY, 0.0)


@each_backend("token_overlap")
def test_large_masses_stay_exact(backend):
    check(backend, [[0, 1, 2]], [[0, 1, 3], [0, 2, 3]], [4_000_001, 4_000_003, 4_000_005, 4_000_007] + [1] * 36, 0.0)
