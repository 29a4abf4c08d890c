"""ties_merge in Triton: bracket each shard's threshold by a sample, find it by counting once, merge in one more pass.

The threshold is the k-th largest magnitude, exactly. A histogram of all entries would be 235 million atomic additions
for four shards of 58.7 million. So a sample of 8192 entries brackets the threshold between two keys, with some 4 % of
the shard between them; a pass over all entries counts in registers those at, above and below the two, and adds to a
histogram only what lies strictly between: the zeros of a sparse delta, and ties at the bracket, cost nothing. In halves
one such pass leaves one key, in float32 a second does. A bracket that missed is widened; passes that are not needed see
so on the device and end at once.
"""

import torch
import triton
import triton.language as tl

from . import tuning
from .triton_helpers import kth_largest, magnitude_key

SAMPLE = 8192
BINS = 2048
COPIES = 16  # of the histogram: keys in halves are few, and additions to one address wait for each other
# Passes until the threshold is certain: one for a bracket that missed, then 11 bits of the key each.
PASSES = {torch.float32: 4, torch.bfloat16: 3, torch.float16: 3}
# A key is 31 bits of a float32; a bfloat16 leaves the lowest 16 of them zero, a float16 13.
SPARE_BITS = {torch.float32: 0, torch.bfloat16: 16, torch.float16: 13}

# State of a shard, four int32: the threshold lies between keys LOW and HIGH, (key - LOW) >> SHIFT is a key's bin, and
# DONE says that it is LOW. Counts of a pass, four int32: keys >= LOW, > LOW, >= HIGH, > HIGH.


@triton.jit
def _store_state(state_ptr, low, high, done, SPARE: tl.constexpr, BINS: tl.constexpr):
    """Write the bracket low .. high of one shard's state [4], with the width of its bins."""
    shift = tl.full((), SPARE, tl.int32)
    while ((high - low) >> shift) >= BINS:
        shift += 1
    tl.store(state_ptr, low)
    tl.store(state_ptr + 1, high)
    tl.store(state_ptr + 2, shift)
    tl.store(state_ptr + 3, done)


@triton.jit
def _sample_kernel(
    deltas_ptr,  # [shards, entries]
    keep_ptr,  # [shards] int32
    state_ptr,  # [shards, 4] int32, written
    entries,
    SPARE: tl.constexpr, SAMPLE: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Bracket the threshold of one shard by four deviations of its rank in a sample, exact where that is the shard."""
    shard = tl.program_id(0)
    size = tl.minimum(entries, SAMPLE)
    place = tl.arange(0, SAMPLE)
    # One entry of each of `size` equal parts, not its first: a stride would meet the same few columns of a matrix.
    step = tl.cast(entries, tl.int64) // size
    mixed = (place.to(tl.uint32) * 0x9E3779B1).to(tl.int64)
    at = place.to(tl.int64) * entries // size + ((mixed * step) >> 32)
    inside = place < size
    value = tl.load(deltas_ptr + tl.cast(shard, tl.int64) * entries + at, mask=inside, other=0.0)
    key = tl.where(inside, magnitude_key(value), -1)
    k = tl.load(keep_ptr + shard)
    if size == entries:
        low = kth_largest(key, k)
        low = tl.min(tl.where(key >= low, key, 0x7FFFFFFF), 0)  # the search may have stopped between two keys
        high = low
    else:
        rank = k.to(tl.float32) / entries * size
        margin = 4.0 * tl.sqrt(rank * tl.maximum(1.0 - rank / size, 0.0)) + 4.0
        upper, lower = (rank - margin).to(tl.int32), (rank + margin).to(tl.int32)
        high = tl.where(upper >= 1, kth_largest(key, tl.maximum(upper, 1)), 0x7F800000)
        low = tl.where(lower <= size, kth_largest(key, tl.minimum(lower, size)), 0)
        low, high = (low >> SPARE) << SPARE, (high >> SPARE) << SPARE
    _store_state(state_ptr + shard * 4, low, high, (size == entries).to(tl.int32), SPARE, BINS)


@triton.jit
def _count_kernel(
    deltas_ptr,  # [shards, entries]
    state_ptr,  # [shards, 4] int32
    counts_ptr,  # [shards, 4] int32, added to
    histogram_ptr,  # [shards, COPIES, BINS] int32, added to
    entries,
    BLOCK: tl.constexpr, BINS: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    """Counts [S, 4] and histogram [S, COPIES, BINS] of one pass: program p takes tiles p, p + programs, ... each."""
    program, shard = tl.program_id(0), tl.program_id(1)
    state_ptr += shard * 4
    if tl.load(state_ptr + 3) == 1:
        return
    low, high, shift = tl.load(state_ptr), tl.load(state_ptr + 1), tl.load(state_ptr + 2)
    values = deltas_ptr + shard.to(tl.int64) * entries
    bins = histogram_ptr + (shard * COPIES + program % COPIES) * BINS
    from_low = tl.full((), 0, tl.int32)
    above_low = tl.full((), 0, tl.int32)
    from_high = tl.full((), 0, tl.int32)
    above_high = tl.full((), 0, tl.int32)
    for tile in range(program, tl.cdiv(entries, BLOCK), tl.num_programs(0)):
        at = tl.cast(tile, tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < entries
        key = tl.where(inside, magnitude_key(tl.load(values + at, mask=inside, other=0.0)), -1)
        # Two counts to a sum: a tile has fewer than 2^16 entries.
        pair = tl.sum((key >= low).to(tl.int32) + ((key > low).to(tl.int32) << 16), 0)
        from_low += pair & 0xFFFF
        above_low += pair >> 16
        pair = tl.sum((key >= high).to(tl.int32) + ((key > high).to(tl.int32) << 16), 0)
        from_high += pair & 0xFFFF
        above_high += pair >> 16
        one = tl.full([BLOCK], 1, tl.int32)
        tl.atomic_add(bins + ((key - low) >> shift), one, mask=(key > low) & (key < high), sem="relaxed")
    counts_ptr += shard * 4
    tl.atomic_add(counts_ptr, from_low, sem="relaxed")
    tl.atomic_add(counts_ptr + 1, above_low, sem="relaxed")
    tl.atomic_add(counts_ptr + 2, from_high, sem="relaxed")
    tl.atomic_add(counts_ptr + 3, above_high, sem="relaxed")


@triton.jit
def _pick_kernel(
    keep_ptr,  # [shards] int32
    state_ptr,  # [shards, 4] int32, narrowed
    counts_ptr,  # [shards, 4] int32
    histogram_ptr,  # [shards, COPIES, BINS] int32
    SPARE: tl.constexpr, BINS: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    """Narrow the bracket of one shard by what a pass counted, or widen it where the threshold lies outside."""
    shard = tl.program_id(0)
    state_ptr += shard * 4
    if tl.load(state_ptr + 3) == 1:
        return
    low, high, shift = tl.load(state_ptr), tl.load(state_ptr + 1), tl.load(state_ptr + 2)
    counts_ptr += shard * 4
    from_low, above_low = tl.load(counts_ptr), tl.load(counts_ptr + 1)
    from_high, above_high = tl.load(counts_ptr + 2), tl.load(counts_ptr + 3)
    k = tl.load(keep_ptr + shard)
    if k <= above_high:
        low = high
        high = tl.full((), 0x7F800000, tl.int32)
    elif k <= from_high:
        low = high
    elif k <= above_low:
        place = tl.arange(0, BINS)
        total = tl.zeros([BINS], tl.int32)
        for copy in range(COPIES):
            total += tl.load(histogram_ptr + (shard * COPIES + copy) * BINS + place)
        # The highest bin at or above which, with what is beyond the bracket, there are at least k keys.
        reached = from_high + tl.sum(total, 0) - tl.cumsum(total, 0) + total >= k
        chosen = tl.max(tl.where(reached, place, 0), 0)
        high = tl.minimum(low + ((chosen + 1) << shift) - (1 << SPARE), high)
        low += chosen << shift
    elif k <= from_low:
        high = low
    else:
        high = low
        low = tl.full((), 0, tl.int32)
    # A bracket of one key that was counted is the threshold; one that was only moved there is counted again.
    done = (low == high) & (k > above_high) & (k <= from_low)
    _store_state(state_ptr, low, high, done.to(tl.int32), SPARE, BINS)


@triton.jit
def _merge_kernel(
    deltas_ptr,  # [shards, entries]
    weights_ptr,  # [shards] float32
    state_ptr,  # [shards, 4] int32
    merged_ptr,  # [entries], written
    entries, shards,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Both candidates at once, the mean of what is positive and that of the rest: each shard is read once."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < entries
    total = tl.zeros([BLOCK], tl.float32)
    plus = tl.zeros([BLOCK], tl.float32)
    minus = tl.zeros([BLOCK], tl.float32)
    plus_mass = tl.zeros([BLOCK], tl.float32)
    minus_mass = tl.zeros([BLOCK], tl.float32)
    for shard in range(shards):
        value = tl.load(deltas_ptr + tl.cast(shard, tl.int64) * entries + at, mask=inside, other=0.0).to(tl.float32)
        weight = tl.load(weights_ptr + shard)
        part = tl.where(magnitude_key(value) >= tl.load(state_ptr + shard * 4), weight * value, 0.0)
        total += part
        positive = part > 0
        negative = (part != 0) & (positive == 0)  # and NaN, which elects minus too
        plus += tl.where(positive, part, 0.0)
        plus_mass += tl.where(positive, weight, 0.0)
        minus += tl.where(negative, part, 0.0)
        minus_mass += tl.where(negative, weight, 0.0)
    elected = total >= 0
    agreeing = tl.where(elected, plus, minus)
    mass = tl.where(elected, plus_mass, minus_mass)
    tl.store(merged_ptr + at, tl.where(mass == 0, 0.0, tl.div_rn(agreeing, mass)), mask=inside)


def ties_merge(deltas, weights, densities):
    shards, shape, device = deltas.shape[0], deltas.shape[1:], deltas.device
    entries = deltas[0].numel()
    merged = torch.empty(shape, dtype=deltas.dtype, device=device)
    if entries == 0:
        return merged
    deltas, weights = deltas.contiguous(), weights.contiguous()
    keep = [max(int(density * entries), 1) for density in densities]
    # Filled, not copied: a copy from the host cannot be captured in a CUDA graph.
    kept = torch.empty(shards, dtype=torch.int32, device=device)
    for shard, count in enumerate(keep):
        kept[shard].fill_(count)
    state = torch.empty(shards, 4, dtype=torch.int32, device=device)
    spare, passes = SPARE_BITS[deltas.dtype], PASSES[deltas.dtype]
    _sample_kernel[(shards,)](
        deltas, kept, state, entries, SPARE=spare, SAMPLE=SAMPLE, BINS=BINS,
        **tuning.config("ties_merge", "sample", device),
    )  # fmt: skip
    if entries > SAMPLE:
        counts = torch.zeros(passes, shards, 4, dtype=torch.int32, device=device)
        histogram = torch.zeros(passes, shards, COPIES, BINS, dtype=torch.int32, device=device)
        config = tuning.config("ties_merge", "count", device)
        programs = min(8 * tuning.multiprocessors(device), triton.cdiv(entries, config["BLOCK"]))
        for step in range(passes):
            _count_kernel[(programs, shards)](
                deltas, state, counts[step], histogram[step], entries, BINS=BINS, COPIES=COPIES, **config
            )
            _pick_kernel[(shards,)](
                kept, state, counts[step], histogram[step], SPARE=spare, BINS=BINS, COPIES=COPIES,
                **tuning.config("ties_merge", "pick", device),
            )  # fmt: skip
    config = tuning.config("ties_merge", "merge", device)
    _merge_kernel[(triton.cdiv(entries, config["BLOCK"]),)](deltas, weights, state, merged, entries, shards, **config)
    return merged
