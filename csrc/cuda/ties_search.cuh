// The thresholds of TIES, the k-th largest magnitude of each shard.
//
// The bits of a magnitude, as an unsigned integer, order like the magnitude: its key. The threshold of a shard is the
// k-th largest key, found exactly by counting keys into bins. Counting every key is bound by shared-memory atomics (8
// a clock and SM would be needed to keep up with 4.3 TB/s), so a sample of 1/64 first says where the threshold must
// lie; then the pass over all entries counts only the 2% of keys near it, and those above. Counts prove the guess or
// refute it; refuted, the passes that follow search the whole range, and proven they end at once.
#pragma once

#include "elements.cuh"

constexpr int DIGIT = 13;
constexpr std::uint32_t BINS = 1u << DIGIT;  // 32 KB of counters: 7 blocks fit on an SM
constexpr int TIES_THREADS = 256;
constexpr int COUNTING_BLOCKS = 888;  // 6 for each of 148 SMs, all resident at once
constexpr int SAMPLED_ONE_IN = 64;
constexpr int GROUP = 8;  // shards of one launch

template <typename T>
struct Key;
template <>
struct Key<float> {
  static constexpr int BITS = 31;
  static constexpr std::uint32_t INFINITE = 0x7F800000u;
  __device__ static float value(std::uint32_t key) { return __uint_as_float(key); }
};
template <>
struct Key<__nv_bfloat16> {
  static constexpr int BITS = 15;
  static constexpr std::uint32_t INFINITE = 0x7F80u;
  __device__ static float value(std::uint32_t key) { return __uint_as_float(key << 16); }
};
template <>
struct Key<__half> {
  static constexpr int BITS = 15;
  static constexpr std::uint32_t INFINITE = 0x7C00u;
  __device__ static float value(std::uint32_t key) {
    const std::uint16_t bits = static_cast<std::uint16_t>(key);
    return __half2float(*reinterpret_cast<const __half*>(&bits));
  }
};

template <typename T, int COUNT>
__device__ __forceinline__ std::uint32_t key_of(const Vector<T, COUNT>& vector, int i) {
  if constexpr (sizeof(T) == 4) {
    return reinterpret_cast<const std::uint32_t*>(&vector)[i] & 0x7FFFFFFFu;
  } else {
    return reinterpret_cast<const std::uint16_t*>(&vector)[i] & 0x7FFFu;
  }
}

// The search of one shard: the k-th largest key is at least `low`, and bins are 2^shift keys wide. All zero at first.
struct Search {
  std::uint32_t low;
  int refined;  // shift = BITS - DIGIT - refined
  std::uint32_t found;
  float threshold;
  unsigned long long above;  // counted keys beyond the last bin
  unsigned long long sampled;
  unsigned blocks;
  unsigned unused;
};

struct Shards {
  std::int64_t entries;
  std::int64_t keep[GROUP];
  Search* search;      // [S]
  std::uint32_t* histogram;  // [S, BINS]
};

__device__ __forceinline__ std::uint32_t scattered(std::uint32_t i) {
  i ^= i >> 16;
  i *= 0x7FEB352Du;
  i ^= i >> 15;
  i *= 0x846CA68Bu;
  return i ^ (i >> 16);
}

// By the last block of a shard, from the shard's counts: where to look next. Leaves the counters zero.
template <typename T, bool SAMPLED>
__device__ void narrow(Search& search, std::uint32_t* histogram, unsigned long long keep, std::int64_t entries) {
  constexpr int RUN = BINS / TIES_THREADS;
  SHARED_ARRAY(unsigned long long, suffix, TIES_THREADS);
  SHARED_ARRAY(int, edge, 2);  // the bins of `least` and `most`
  const int thread = threadIdx.x;
  // From L2: other blocks wrote these, and the first-level cache may hold what was there before.
  const unsigned long long above = __ldcg(&search.above);
  unsigned long long own = 0;
  for (int i = 0; i < RUN; i++) own += __ldcg(&histogram[thread * RUN + i]);
  suffix[thread] = own;
  if (thread == 0) edge[0] = edge[1] = -1;
  __syncthreads();
  if (thread == 0) {
    unsigned long long total = above;
    for (int t = TIES_THREADS - 1; t >= 0; t--) {
      const unsigned long long counted = suffix[t];
      suffix[t] = total;  // keys beyond the thread's run
      total += counted;
    }
  }
  __syncthreads();
  // edge[0] is the highest bin with `least` keys in or beyond it, edge[1] that with `most`.
  unsigned long long least = keep, most = keep;
  if (SAMPLED) {
    // The slack is 16 deviations of independent draws: neighbours of one row are alike, and 8 are drawn at once.
    const double rank = static_cast<double>(keep) * __ldcg(&search.sampled) / entries;
    const double slack = 16 * sqrt(rank) + 16;
    least = static_cast<unsigned long long>(rank + slack);
    most = rank > slack ? static_cast<unsigned long long>(rank - slack) : 1;
  }
  unsigned long long beyond = suffix[thread];
  for (int i = RUN - 1; i >= 0; i--) {
    const unsigned long long reached = beyond + __ldcg(&histogram[thread * RUN + i]);
    if (beyond < least && least <= reached) edge[0] = thread * RUN + i;
    if (beyond < most && most <= reached) edge[1] = thread * RUN + i;
    beyond = reached;
  }
  __syncthreads();
  for (int i = thread; i < static_cast<int>(BINS); i += TIES_THREADS) histogram[i] = 0;
  if (thread != 0) return;
  const int coarsest = Key<T>::BITS - DIGIT;
  const int shift = coarsest - search.refined;
  const bool too_low = above >= keep;
  if (SAMPLED) {
    // Zero is not counted: whatever is not reached lies in the first bin.
    const std::uint32_t first = edge[0] < 0 ? 0 : edge[0], last = edge[1] < 0 ? 0 : edge[1];
    const std::uint32_t width = (last + 1 - first) << shift;
    int next = 0;
    while (width >> next > BINS) next++;
    search.low = first << shift;
    search.refined = coarsest - next;
  } else if (too_low || (edge[0] < 0 && search.low > 0)) {
    search.low = 0;
    search.refined = 0;
  } else {
    const std::uint32_t low = search.low + ((edge[0] < 0 ? 0u : static_cast<std::uint32_t>(edge[0])) << shift);
    search.low = low;
    if (shift == 0) {
      search.threshold = Key<T>::value(low < Key<T>::INFINITE ? low : Key<T>::INFINITE);  // a NaN counts as infinite
      search.found = 1;
    } else {
      search.refined = coarsest - (shift > DIGIT ? shift - DIGIT : 0);
    }
  }
  search.above = 0;
  search.blocks = 0;
}

template <typename T, int COUNT, bool SAMPLED>
__global__ void __launch_bounds__(TIES_THREADS) count(const T* deltas, Shards shards) {
  SHARED_ARRAY(std::uint32_t, bins, BINS);
  SHARED_ARRAY(unsigned long long, block_counts, 2);  // above the last bin, and sampled
  SHARED_ARRAY(bool, last_block, 1);
  const int shard = blockIdx.y;
  Search& search = shards.search[shard];
  if (search.found) return;
  const int shift = Key<T>::BITS - DIGIT - search.refined;
  const std::uint32_t low = search.low;
  // Where the range starts at zero its first bin takes all that no other counts: a delta is mostly zeros at times.
  const std::uint32_t skipped = low == 0 ? 1u << shift : 0;
  const std::uint32_t base = low + skipped, first_bin = skipped ? 1 : 0;
  const std::uint32_t span = (BINS << shift) - skipped;
  const std::uint32_t upper = base + span;
  for (int i = threadIdx.x; i < static_cast<int>(BINS); i += TIES_THREADS) bins[i] = 0;
  if (threadIdx.x == 0) block_counts[0] = block_counts[1] = 0;
  __syncthreads();

  std::uint32_t above = 0, sampled = 0;
  auto take = [&](const Vector<T, COUNT>& vector) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const std::uint32_t key = key_of(vector, i);
      above += key >= upper;
      if (key - base < span) atomicAdd(&bins[((key - base) >> shift) + first_bin], 1u);
    }
  };
  const T* source = deltas + shard * shards.entries;
  const std::int64_t vectors = shards.entries / COUNT;
  const std::int64_t start = static_cast<std::int64_t>(blockIdx.x) * TIES_THREADS + threadIdx.x;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * TIES_THREADS;
  if (SAMPLED) {
    // One vector of each 64, at a place that varies, so that no column of a matrix is drawn more often than others.
    for (std::int64_t i = start; i < vectors / SAMPLED_ONE_IN; i += step) {
      const std::int64_t place = i * SAMPLED_ONE_IN + scattered(static_cast<std::uint32_t>(i)) % SAMPLED_ONE_IN;
      take(load_vector<T, COUNT>(source + place * COUNT));
      sampled += COUNT;
    }
  } else {
    constexpr int AHEAD = 4;  // 64 bytes in flight a thread, 96 KB an SM
    std::int64_t i = start;
    for (; i + (AHEAD - 1) * step < vectors; i += AHEAD * step) {
      Vector<T, COUNT> vector[AHEAD];
#pragma unroll
      for (int j = 0; j < AHEAD; j++) vector[j] = load_vector<T, COUNT>(source + (i + j * step) * COUNT);
#pragma unroll
      for (int j = 0; j < AHEAD; j++) take(vector[j]);
    }
    for (; i < vectors; i += step) take(load_vector<T, COUNT>(source + i * COUNT));
  }
  const unsigned long long warp_above = lanes_sum(static_cast<unsigned long long>(above));
  const unsigned long long warp_sampled = lanes_sum(static_cast<unsigned long long>(sampled));
  if (threadIdx.x % WARP_SIZE == 0) {
    atomicAdd(&block_counts[0], warp_above);
    atomicAdd(&block_counts[1], warp_sampled);
  }
  __syncthreads();

  for (int i = threadIdx.x; i < static_cast<int>(BINS); i += TIES_THREADS) {
    if (bins[i]) atomicAdd(&shards.histogram[shard * BINS + i], bins[i]);
  }
  if (threadIdx.x == 0) {
    if (block_counts[0]) atomicAdd(&search.above, block_counts[0]);
    if (block_counts[1]) atomicAdd(&search.sampled, block_counts[1]);
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) *last_block = atomicAdd(&search.blocks, 1u) == gridDim.x - 1;
  __syncthreads();
  if (*last_block) {
    __threadfence();
    std::int64_t keep = 0;  // an index that varies would put the whole parameter on the stack
#pragma unroll
    for (int s = 0; s < GROUP; s++) keep = s == shard ? shards.keep[s] : keep;
    narrow<T, SAMPLED>(search, shards.histogram + shard * BINS, keep, shards.entries);
  }
}
