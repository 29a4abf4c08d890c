// Lists of the rows that masks name, made by a block in shared memory.
#pragma once

#include "primitives.cuh"

// Lists the bits set in the block's words, thread t holding bits first + 32 t + (0 .. 31), in ascending order; returns
// their number. Of these, `room` are written from number `skip` on. `partial` has a place per warp.
__device__ inline int list_set_bits(unsigned word, int first, int* list, int skip, int room, unsigned* partial) {
  const Prefix prefix = block_prefix(__popc(word), partial);
  int place = static_cast<int>(prefix.before) - skip;
  for (; word != 0; word &= word - 1, place++) {
    if (place >= 0 && place < room) list[place] = first + static_cast<int>(threadIdx.x) * 32 + __ffs(word) - 1;
  }
  __syncthreads();
  return static_cast<int>(prefix.total);
}

// The entries of `route` for COUNT tokens from `start` on, -1 beyond the last; and in `distinct` the masks among them,
// one for a run of tokens that share it. Returns the number of these.
template <int COUNT>
__device__ int gather_routes(const int* route, std::int64_t start, std::int64_t tokens, int* routes, int* distinct) {
  SHARED_ARRAY(int, number, 1);
  const int thread = threadIdx.x;
  if (thread < COUNT) routes[thread] = start + thread < tokens ? route[start + thread] : -1;
  if (thread == 0) *number = 0;
  __syncthreads();
  if (thread < COUNT && routes[thread] >= 0 && (thread == 0 || routes[thread - 1] != routes[thread])) {
    distinct[atomicAdd(number, 1)] = routes[thread];  // in no order: they are only joined
  }
  __syncthreads();
  return *number;
}

// The union of `count` masks, word `word` of it.
__device__ __forceinline__ unsigned joined_word(const unsigned* masks, std::int64_t words, const int* distinct,
                                                int count, std::int64_t word) {
  unsigned joined = 0;
#pragma unroll 8
  for (int i = 0; i < count; i++) joined |= masks[distinct[i] * words + word];
  return joined;
}
