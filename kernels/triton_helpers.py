"""Device functions that several kernels share: bits of masks, order of magnitudes, keys that carry a row."""

import triton
import triton.language as tl


@triton.jit
def popcount(words):
    """Set bits of each int32, by adding neighbours in fields of 2, 4 and 8 bits; LLVM makes it one POPC."""
    fields = words.to(tl.uint32, bitcast=True)
    fields = fields - ((fields >> 1) & 0x55555555)
    fields = (fields & 0x33333333) + ((fields >> 2) & 0x33333333)
    fields = (fields + (fields >> 4)) & 0x0F0F0F0F
    return ((fields * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _bitwise_or(a, b):
    return a | b


@triton.jit
def union(words):
    """OR of [rows, words] over the rows."""
    return tl.reduce(words, 0, _bitwise_or)


@triton.jit
def nth_set_bit(words, rank):
    """Place of the set bit that has `rank` set bits below it, in each int32: five halvings of the word."""
    place = tl.zeros_like(rank)
    for step in tl.static_range(5):
        half = 16 >> step
        below = popcount(words & ((1 << half) - 1))
        upper = rank >= below
        rank = tl.where(upper, rank - below, rank)
        place = tl.where(upper, place + half, place)
        words = tl.where(upper, words >> half, words)
    return place


@triton.jit
def nth_set_bits(words, rank):
    """Places of the set bits of the given ranks in a row of words; beyond the last it is anything.

    Finding a bit by its rank compacts a mask without a scatter, which Triton lacks between registers, and without
    a launch of its own: each program finds the bits that it reads.
    """
    count = popcount(words)
    upto = tl.cumsum(count, 0)
    before = upto - count
    # The one word that holds the bit, found by comparing twice, not by counting how many end before it: LLVM counts
    # comparisons as a population count of a vector of predicates, which it gathers on the stack. (Its vectorizer makes
    # that form a choice by cost since github.com/llvm/llvm-project/pull/223163; Triton 3.9 has it always.)
    holds = (before[None, :] <= rank[:, None]) & (rank[:, None] < upto[None, :])
    word = tl.sum(tl.where(holds, words[None, :], 0), 1)
    origin = tl.sum(tl.where(holds, (tl.arange(0, words.shape[0]) * 65536 + before)[None, :], 0), 1)
    return (origin // 65536) * 32 + nth_set_bit(word, rank - origin % 65536)


@triton.jit
def magnitude_key(values):
    """The bits of |values| as int32, which order as the magnitudes do; NaN counts as infinite."""
    bits = values.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.minimum(bits, 0x7F800000)  # those of infinity


@triton.jit
def kth_largest(key, k):
    """A threshold t of keys >= 0 (padding is -1): the k-th largest, or one that exactly k keys reach.

    Bisection, as each step is one comparison and one count in registers: 31 at most, and some 20 on features, for
    it ends as soon as t parts exactly k from the rest. A histogram of 256 bins costs ten times one such step.
    """
    low = tl.full((), 0, tl.int32)
    high = tl.max(key, 0) + 1
    while high - low > 1:
        middle = low + ((high - low) >> 1)
        count = tl.sum((key >= middle).to(tl.int32), 0)
        low = tl.where(count >= k, middle, low)
        high = tl.where(count == k, middle + 1, tl.where(count > k, high, middle))
    return low


@triton.jit
def ranked(score, row, seen):
    """int64 keys that order by score (int32, >= 0), then by lowest row; 0 where a row is not seen."""
    return tl.where(seen, ((score + 1).to(tl.int64) << 32) | (row ^ 0x7FFFFFFF).to(tl.int64), 0)


@triton.jit
def ranked_row(key):
    """The row of a key, -1 of 0."""
    return tl.where(key > 0, (key & 0x7FFFFFFF) ^ 0x7FFFFFFF, -1).to(tl.int32)


@triton.jit
def ranked_score(key):
    """The score of a key, 0 of 0."""
    return tl.maximum((key >> 32) - 1, 0).to(tl.int32)


@triton.jit
def visible_rows(valid_ptr, rows):
    """How many rows a query sees: the device's count [1] (None: all), between 0 and the capacity."""
    if valid_ptr is None:
        return rows
    else:
        return tl.minimum(tl.maximum(tl.load(valid_ptr), 0), rows)


@triton.jit
def multiply_add(a, b, total):
    """total + a @ b in float32: halves of one type on the tensor cores as they are, all else as three TF32 products.

    One TF32 product would keep 10 bits, and IEEE products do without the tensor cores; three keep 21 bits.
    """
    if a.dtype == b.dtype and a.dtype != tl.float32:
        return tl.dot(a, b, total)
    else:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="tf32x3")


@triton.jit
def finite(values):
    """Whether every value is finite, as a scalar."""
    return tl.min((tl.abs(values) < float("inf")).to(tl.int32)) == 1
