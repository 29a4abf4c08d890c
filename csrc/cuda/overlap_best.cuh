// How blocks agree on the best stored row of a query, whichever way they count.
#pragma once

#include "mask_overlap.h"
#include "primitives.cuh"

// One number to maximise: the overlap, then the lowest row. Zero is no row at all, so the overlap counts from 1.
__device__ __forceinline__ unsigned long long best_key(int overlap, std::int64_t row) {
  return (static_cast<unsigned long long>(overlap + 1) << 32) | (0xFFFFFFFFu - static_cast<unsigned>(row));
}

// How many of the stored rows are in use.
__device__ inline std::int64_t rows_seen(const OverlapSearch& arguments) {
  if (arguments.valid == nullptr) return arguments.rows;
  const std::int64_t valid = *arguments.valid;
  return valid < arguments.rows ? valid : arguments.rows;
}

__device__ __forceinline__ bool sees(const OverlapSearch& arguments, std::int64_t query, std::int64_t row) {
  return arguments.query_group == nullptr || arguments.query_group[query] == arguments.stored_group[row];
}

// Ask for the first stored rows while the grid before still computes the queries.
__device__ inline void prefetch_stored(const OverlapSearch& arguments) {
  constexpr int LINE_WORDS = 32;  // of 128 bytes
  const std::int64_t words = arguments.prefetched * arguments.words;
  const std::int64_t block = blockIdx.x + std::int64_t{blockIdx.y} * gridDim.x;
  for (std::int64_t word = (block * blockDim.x + threadIdx.x) * LINE_WORDS; word < words;
       word += std::int64_t{gridDim.x} * gridDim.y * blockDim.x * LINE_WORDS) {
    prefetch_to_l2(arguments.stored + word);
  }
}

// Merge a block's best rows for `queries` queries from `first` on; the last block of them all writes the answers.
__device__ inline void publish_best(const OverlapSearch& arguments, std::int64_t first, int queries,
                                    const unsigned long long* block_best, unsigned* shared_flag) {
  const int q = threadIdx.x;
  if (q < queries && block_best[q] != 0) atomicMax(&arguments.best[first + q], block_best[q]);
  if (!last_block_done(&arguments.finished[blockIdx.y], gridDim.x, shared_flag) || q >= queries) return;
  const unsigned long long key = __ldcg(&arguments.best[first + q]);
  const int index = key == 0 ? -1 : static_cast<int>(0xFFFFFFFFu - static_cast<unsigned>(key));
  const int overlap = key == 0 ? 0 : static_cast<int>(key >> 32) - 1;
  arguments.index[first + q] = index;
  arguments.overlap[first + q] = overlap;
  if (arguments.route != nullptr) arguments.route[first + q] = overlap >= *arguments.minimum ? index : -1;
}
