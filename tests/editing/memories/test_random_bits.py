"""Random bits against SplitMix64 written in Python's integers."""

import pytest
import torch
from cases import bits

from corrigenda.editing.memories import random_bits as module
from corrigenda.editing.memories.random_bits import random_bits

MASK = (1 << 64) - 1


def mixed(state):
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


@pytest.mark.parametrize("seed, stream, columns", [(42, 0, 33), (0, 7, 64), (2**32 - 1, 2**31, 5)])
def test_equals_the_generator_in_integers(seed, stream, columns):
    start = mixed((stream << 32) ^ seed)
    drawn = [mixed((start + (n + 1) * 0x9E3779B97F4A7C15) & MASK) >> 32 for n in range(4 * columns)]
    expected = [[drawn[i * columns + j] < int(0.3 * 2**32) for j in range(columns)] for i in range(4)]
    assert bits(random_bits(seed, stream, 4, columns, 0.3, "cpu"), columns).tolist() == expected


def test_does_not_depend_on_how_much_is_drawn_at_a_time(monkeypatch):
    whole = random_bits(1, 2, 50, 70, 0.2, "cpu")
    monkeypatch.setattr(module, "_ENTRIES", 200)
    assert torch.equal(random_bits(1, 2, 50, 70, 0.2, "cpu"), whole)


def test_rate_and_independence():
    first, second = (bits(random_bits(42, stream, 300, 320, 0.2, "cpu"), 320) for stream in (0, 1))
    for drawn, share in ((first, 0.2), (second, 0.2), (first & second, 0.04)):
        assert abs(drawn.mean() - share) < 4 * (share * (1 - share) / drawn.size) ** 0.5
    assert bits(random_bits(42, 0, 3, 33, 1.0, "cpu"), 33).all()
