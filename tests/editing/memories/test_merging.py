"""The ways to merge shards: what each keeps, and that every shard takes part."""

from typing import get_args, get_type_hints

import pytest
import torch
from cases import normal

from corrigenda.editing.memories.merging import merge
from corrigenda.editing.methods.wise.config import WiseConfig
from corrigenda.kernels import ops

SHARDS = list(normal(3, 40, 50, seed=0))


MERGES = get_args(get_type_hints(WiseConfig)["merge"])


@pytest.mark.parametrize("kind", MERGES)
def test_every_shard_takes_part(kind):
    merged = merge(kind, SHARDS, [0.25, 0.25, 0.5], 0.5, seed=1)
    assert merged.shape == (40, 50) and merged.dtype == torch.float32
    for shard in range(3):
        changed = [delta.clone() for delta in SHARDS]
        changed[shard] += 1.0
        assert not torch.equal(merge(kind, changed, [0.25, 0.25, 0.5], 0.5, seed=1), merged)


@pytest.mark.parametrize("kind", MERGES)
def test_equal_shards_merge_into_themselves(kind):
    """At full density; where a random share is dropped, nothing is."""
    torch.testing.assert_close(merge(kind, [SHARDS[0]] * 3, [0.2, 0.2, 0.6], 1.0, seed=1), SHARDS[0])


def test_linear_is_the_weighted_mean_and_magnitude_that_of_the_largest():
    weights = [0.2, 0.2, 0.6]
    mean = sum(weight * delta for weight, delta in zip(weights, SHARDS))
    torch.testing.assert_close(merge("linear", SHARDS, weights, 0.1, seed=0), mean)
    torch.testing.assert_close(merge("linear", SHARDS, [2 * w for w in weights], 0.1, seed=0), mean)
    kept = [torch.where(d.abs() >= d.abs().flatten().topk(200).values[-1], d, 0.0) for d in SHARDS]
    mean = sum(weight * delta for weight, delta in zip(weights, kept))
    torch.testing.assert_close(merge("magnitude", SHARDS, weights, 0.1, seed=0), mean)


def test_ties_and_sign_are_the_op():
    weights = torch.tensor([0.2, 0.2, 0.6])
    stack = torch.stack(SHARDS)
    assert torch.equal(merge("ties", SHARDS, weights.tolist(), 0.3, 0), ops.ties_merge(stack, weights, [0.3] * 3))
    assert torch.equal(merge("sign", SHARDS, weights.tolist(), 0.3, 0), ops.ties_merge(stack, weights, [1.0] * 3))


@pytest.mark.parametrize("kind", ["dare", "dare_ties"])
def test_dare_drops_at_random_and_scales_up(kind):
    merged = merge(kind, SHARDS[:1], [1.0], 0.25, seed=3)
    kept = merged != 0
    assert 0.2 < kept.float().mean() < 0.3
    torch.testing.assert_close(merged[kept], SHARDS[0][kept] * 4)
    assert torch.equal(merge(kind, SHARDS[:1], [1.0], 0.25, seed=3), merged)
    assert not torch.equal(merge(kind, SHARDS[:1], [1.0], 0.25, seed=4), merged)


def test_slerp_keeps_the_length_and_goes_shard_by_shard():
    a, b = (delta / delta.norm() for delta in SHARDS[:2])
    half = merge("slerp", [a, b], [0.5, 0.5], 1.0, seed=0)
    torch.testing.assert_close(half.norm(), torch.tensor(1.0))
    torch.testing.assert_close((half * a).sum(), (half * b).sum())
    torch.testing.assert_close(merge("slerp", [a, b], [1.0, 1e-9], 1.0, seed=0), a)
