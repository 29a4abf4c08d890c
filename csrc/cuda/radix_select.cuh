// Choose the k largest magnitudes of a row that a block holds in registers, exactly, ties to the lowest index.
#pragma once

#include "primitives.cuh"

// Larger for a larger magnitude, NaN as large as infinity. Never 0, which stands for no entry at all; 31 bits.
__device__ __forceinline__ unsigned magnitude_key(float value) {
  const unsigned bits = __float_as_uint(value) & 0x7FFFFFFFu;
  return (bits > 0x7F800000u ? 0x7F800000u : bits) + 1;
}

// The three digits of a key. The first holds three bits beside the exponent: with the exponent alone, a third of all
// keys would be counted by one atomic counter.
constexpr int FIRST_BITS = 11, FIRST_SHIFT = 20;
constexpr int SECOND_BITS = 10, SECOND_SHIFT = 10;
constexpr int THIRD_BITS = 10, THIRD_SHIFT = 0;

struct RadixScratch {
  unsigned first[1 << FIRST_BITS], second[1 << SECOND_BITS], third[1 << THIRD_BITS];  // how many keys have a digit
  unsigned partial[WARP_SIZE];
  unsigned prefix, wanted, present;
};

// Before the first use; a barrier must follow.
__device__ inline void clear(RadixScratch& scratch) {
  for (unsigned bin = threadIdx.x; bin < 1 << FIRST_BITS; bin += blockDim.x) scratch.first[bin] = 0;
  for (unsigned bin = threadIdx.x; bin < 1 << SECOND_BITS; bin += blockDim.x) scratch.second[bin] = 0;
  for (unsigned bin = threadIdx.x; bin < 1 << THIRD_BITS; bin += blockDim.x) scratch.third[bin] = 0;
}

// What is known of the k-th largest key: its upper bits, how many keys with them are still to choose, of how many.
struct Threshold {
  unsigned prefix, wanted, present;
};

// Learn one digit more.
template <int BITS, int SHIFT, int COUNT>
__device__ __forceinline__ Threshold narrow(const unsigned (&key)[COUNT], Threshold known, unsigned* histogram,
                                            RadixScratch& scratch) {
  constexpr int BINS = 1 << BITS;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    if (key[i] != 0 && key[i] >> (SHIFT + BITS) == known.prefix) {
      atomicAdd(&histogram[key[i] >> SHIFT & (BINS - 1)], 1u);
    }
  }
  __syncthreads();
  // Thread 0 has the largest digits.
  const int bins = (BINS + blockDim.x - 1) / blockDim.x;
  const int high = BINS - 1 - static_cast<int>(threadIdx.x) * bins;
  const int low = max(high - bins, -1);
  unsigned sum = 0;
  for (int bin = high; bin > low; --bin) sum += histogram[bin];
  const unsigned above = block_prefix(sum, scratch.partial).before;
  if (above < known.wanted && known.wanted <= above + sum) {
    unsigned larger = above;
    int bin = high;
    while (larger + histogram[bin] < known.wanted) larger += histogram[bin--];
    scratch.prefix = known.prefix << BITS | static_cast<unsigned>(bin);
    scratch.wanted = known.wanted - larger;
    scratch.present = histogram[bin];
  }
  __syncthreads();
  return {scratch.prefix, scratch.wanted, scratch.present};
}

// Bit i of the result: whether this thread's key i is chosen. Threads hold neighbouring entries, in order; `scratch`
// has been cleared. Three passes at most, fewer where a digit tells the chosen from the rest.
template <int COUNT>
__device__ __forceinline__ unsigned choose_largest(const unsigned (&key)[COUNT], unsigned k, RadixScratch& scratch) {
  static_assert(COUNT <= 32, "the choice is one word");
  int shift = FIRST_SHIFT;
  Threshold found = narrow<FIRST_BITS, FIRST_SHIFT>(key, {0, k, 0}, scratch.first, scratch);
  if (found.wanted < found.present) {
    shift = SECOND_SHIFT;
    found = narrow<SECOND_BITS, SECOND_SHIFT>(key, found, scratch.second, scratch);
  }
  if (found.wanted < found.present) {
    shift = THIRD_SHIFT;
    found = narrow<THIRD_BITS, THIRD_SHIFT>(key, found, scratch.third, scratch);
  }
  const unsigned threshold = max(found.prefix << shift, 1u);  // never the 0 of an entry that is none
  unsigned at_least = 0, equal = 0;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    if (key[i] >= threshold) at_least |= 1u << i;
    if (key[i] == threshold) equal |= 1u << i;
  }
  if (found.wanted == found.present) return at_least;
  // Some of the equal ones are too many: of all threads together, the first `wanted` stay.
  const unsigned before = block_prefix(__popc(equal), scratch.partial).before;
  unsigned chosen = at_least & ~equal;
  for (unsigned rank = before; equal != 0 && rank < found.wanted; ++rank) {
    chosen |= equal & (0u - equal);
    equal &= equal - 1;
  }
  return chosen;
}
