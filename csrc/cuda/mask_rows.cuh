// Lists of the rows that masks name, made by a block in shared memory.
#pragma once

#include "primitives.cuh"

// Lists the bits set in the block's words, thread t holding bits 32 t .. 32 t + 31, in ascending order; returns their
// number. Of these, `room` are written from number `skip` on. `partial` has a place per warp.
__device__ inline int list_set_bits(std::uint32_t word, std::uint16_t* list, int skip, int room, unsigned* partial) {
  const Prefix prefix = block_prefix(__popc(word), partial);
  int place = static_cast<int>(prefix.before) - skip;
  for (; word != 0; word &= word - 1, place++) {
    if (place >= 0 && place < room) list[place] = static_cast<std::uint16_t>(threadIdx.x * 32 + __ffs(word) - 1);
  }
  __syncthreads();
  return static_cast<int>(prefix.total);
}

// The entries of `route` for COUNT tokens from `start` on, -1 beyond the last; and in `distinct` the masks among them,
// one for a run of tokens that share it. Returns the number of these.
template <int THREADS, int COUNT>
__device__ int gather_routes(const int* route, std::int64_t start, std::int64_t tokens, int* routes, int* distinct) {
  static_assert(COUNT <= THREADS);
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
__device__ __forceinline__ std::uint32_t joined_word(const int* masks, std::int64_t words, const int* distinct, int count,
                                                std::int64_t word) {
  std::uint32_t joined = 0;
#pragma unroll 8
  for (int i = 0; i < count; i++) joined |= static_cast<std::uint32_t>(masks[distinct[i] * words + word]);
  return joined;
}
