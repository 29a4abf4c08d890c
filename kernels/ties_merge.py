"""ties_merge in Triton: bracket each shard's threshold by a sample, find it by counting once, merge in one more pass.

The threshold is the k-th largest magnitude, exactly. Sorting is out of the question and a histogram of all entries is
made of atomic additions, 235 million for four shards of 58.7 million. So a sample of 16384 entries brackets the
threshold between two keys with some 3 % of the shard between them; a pass over all entries counts, in registers, those
above, at and between the two, and adds to a histogram only what lies strictly between: zeros, of which a sparse delta
is full, and ties at the bracket cost nothing. In halves one such pass leaves one key, in float32 a second does. A
bracket that missed is widened to all keys; passes that are not needed see so on the device and end at once.
"""

import torch
import triton
import triton.language as tl

from . import tuning
from .triton_helpers import kth_largest, magnitude_key

SAMPLE = 16384
BINS = 2048
COPIES = 32  # of the histogram: a key may be common, and additions to one address wait for each other
# A bracket with its miss (one pass), then all 2^31 or 2^15 keys by 11 bits a pass.
PASSES = {torch.float32: 4, torch.bfloat16: 3, torch.float16: 3}
# Keys are float32 bits: a bfloat16 has 16 zeros below its bits, a float16 13.
SPARE_BITS = {torch.float32: 0, torch.bfloat16: 16, torch.float16: 13}

# State of a shard, int32: the bracket (low, high], the bits by which its keys are shifted into bins, and k less what
# is known to be above; low == high is the threshold, found.
LOW, HIGH, SHIFT = (tl.constexpr(i) for i in range(3))
STATE = 3
# Counted in a pass: keys >= low, > low, >= high, > high.
COUNTS = 4


@triton.jit
def _shift(low, high, SPARE: tl.constexpr, BINS: tl.constexpr):
    """By how many bits the keys above `low` and below `high` are to be shifted to fit the bins."""
    shift = tl.full((), SPARE, tl.int32)
    while ((high - low) >> shift) >= BINS:
        shift += 1
    return shift


@triton.jit
def _sample_kernel(deltas, keep, state, entries, SPARE: tl.constexpr, SAMPLE: tl.constexpr, BINS: tl.constexpr):
    """Bracket the k-th largest key of one shard by four deviations of its rank in a sample; exactly, if that is all."""
    shard = tl.program_id(0)
    size = tl.minimum(entries, SAMPLE)
    place = tl.arange(0, SAMPLE)
    # Stratified: the middle of each of 16384 equal parts.
    at = (place.to(tl.int64) * 2 + 1) * entries // (2 * size)
    value = tl.load(deltas + tl.cast(shard, tl.int64) * entries + at, mask=place < size, other=0.0)
    key = tl.where(place < size, magnitude_key(value), -1)
    k = tl.load(keep + shard)
    if size == entries:
        low = kth_largest(key, k.to(tl.int32))
        # Bisection may stop between two keys.
        low = tl.min(tl.where(key >= low, key, 0x7FFFFFFF), 0)
        high = low
    else:
        rank = (k.to(tl.float32) / entries) * size
        margin = 4.0 * tl.sqrt(rank * tl.maximum(1.0 - rank / size, 0.0)) + 4.0
        upper, lower = (rank - margin).to(tl.int32), (rank + margin).to(tl.int32)
        high = tl.where(upper >= 1, kth_largest(key, tl.maximum(upper, 1)), 0x7F800000)
        low = tl.where(lower <= size, kth_largest(key, tl.minimum(lower, size)), 0)
        low, high = (low >> SPARE) << SPARE, (high >> SPARE) << SPARE
    state += shard * 3
    tl.store(state + LOW, low)
    tl.store(state + HIGH, high)
    tl.store(state + SHIFT, _shift(low, high, SPARE, BINS))
