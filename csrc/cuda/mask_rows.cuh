// Lists of the rows that masks name, made by a block in shared memory.
#pragma once

#include "elements.cuh"

namespace corrigenda {

// Writes the places of the bits set in the block's words, thread t holding bits 32 t .. 32 t + 31, in ascending order;
// returns their number. `scratch` has a place per warp. A place p is stored as p - skip, and only if 0 <= p - skip < room,
// with p counted among the set bits.
template <int THREADS>
__device__ int list_set_bits(uint32_t word, uint16_t* list, int skip, int room, int* scratch) {
  constexpr int WARPS = THREADS / 32;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int before = __popc(word);
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int other = __shfl_up_sync(~0u, before, distance);
    if (lane >= distance) before += other;
  }
  __syncthreads();  // whoever still reads the list or the scratch has done so
  if (lane == 31) scratch[warp] = before;
  __syncthreads();
  int total = 0;
#pragma unroll
  for (int w = 0; w < WARPS; w++) {
    if (w < warp) before += scratch[w];
    total += scratch[w];
  }
  int place = before - __popc(word) - skip;
  while (word != 0) {
    if (place >= 0 && place < room) list[place] = static_cast<uint16_t>(threadIdx.x * 32 + __ffs(word) - 1);
    word &= word - 1;
    place++;
  }
  __syncthreads();
  return total;
}

// The entries of `route` for COUNT tokens from `start` on, -1 beyond the last; and in `distinct` the masks among them,
// one for a run of tokens that share it. Returns the number of these.
template <int THREADS, int COUNT>
__device__ int gather_routes(const int* route, int64_t start, int64_t tokens, int* routes, int* distinct) {
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
__device__ __forceinline__ uint32_t joined_word(const int* masks, int64_t words, const int* distinct, int count,
                                                int64_t word) {
  uint32_t joined = 0;
#pragma unroll 8
  for (int i = 0; i < count; i++) joined |= static_cast<uint32_t>(masks[distinct[i] * words + word]);
  return joined;
}

}  // namespace corrigenda
