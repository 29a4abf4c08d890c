// TIES: trim each shard to its largest magnitudes, elect a sign per entry, average what agrees with it.
//
// The bits of a magnitude, as an unsigned integer, order like the magnitude: its key. The threshold of a shard is the
// k-th largest key, found exactly by counting keys into bins. Counting every key is bound by shared-memory atomics (8
// a clock and SM would be needed to keep up with 4.3 TB/s), so a sample of 1/64 first says where the threshold must
// lie; then the pass over all entries counts only the 2% of keys near it, and those above. Counts prove the guess or
// refute it; refuted, the passes that follow search the whole range, and proven they end at once.
#include "ties_merge.h"

#include "elements.cuh"

namespace {

constexpr int DIGIT = 13;
constexpr std::uint32_t BINS = 1u << DIGIT;  // 32 KB of counters: 7 blocks fit on an SM
constexpr int THREADS = 256;
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
  constexpr int RUN = BINS / THREADS;
  SHARED_ARRAY(unsigned long long, suffix, THREADS);
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
    for (int t = THREADS - 1; t >= 0; t--) {
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
  for (int i = thread; i < static_cast<int>(BINS); i += THREADS) histogram[i] = 0;
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
__global__ void __launch_bounds__(THREADS) count(const T* deltas, Shards shards) {
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
  for (int i = threadIdx.x; i < static_cast<int>(BINS); i += THREADS) bins[i] = 0;
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
  const std::int64_t start = static_cast<std::int64_t>(blockIdx.x) * THREADS + threadIdx.x;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * THREADS;
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

  for (int i = threadIdx.x; i < static_cast<int>(BINS); i += THREADS) {
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

struct Merge {
  float sum, total, mass;
};

// Products and sums are rounded one by one: fused, opposite deltas would not cancel and elect another sign.
__device__ __forceinline__ float contribution(float delta, float threshold, float weight) {
  return fabsf(delta) < threshold ? 0.0f : __fmul_rn(weight, delta);  // a NaN stays
}

__device__ __forceinline__ void add_agreeing(Merge& merge, float part, float weight) {
  if (part != 0.0f && (part > 0.0f) == (merge.sum >= 0.0f)) {
    merge.total = __fadd_rn(merge.total, part);
    merge.mass = __fadd_rn(merge.mass, weight);
  }
}

// SHARDS is 0 where their number is known to the run alone; each entry is then read twice.
template <typename T, int COUNT, int SHARDS>
__global__ void __launch_bounds__(THREADS)
    merge(const T* deltas, const float* weights, const Search* search, int shards, std::int64_t entries, T* merged) {
  const std::int64_t at = (static_cast<std::int64_t>(blockIdx.x) * THREADS + threadIdx.x) * COUNT;
  if (at >= entries) return;
  Merge merging[COUNT] = {};
  if constexpr (SHARDS > 0) {
    Vector<T, COUNT> vector[SHARDS];
#pragma unroll
    for (int s = 0; s < SHARDS; s++) vector[s] = load_vector<T, COUNT>(deltas + s * entries + at);
    float weight[SHARDS], threshold[SHARDS];
#pragma unroll
    for (int s = 0; s < SHARDS; s++) weight[s] = weights[s], threshold[s] = search[s].threshold;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      float part[SHARDS];
#pragma unroll
      for (int s = 0; s < SHARDS; s++) {
        part[s] = contribution(to_float(vector[s].values[i]), threshold[s], weight[s]);
        merging[i].sum = __fadd_rn(merging[i].sum, part[s]);
      }
#pragma unroll
      for (int s = 0; s < SHARDS; s++) add_agreeing(merging[i], part[s], weight[s]);
    }
  } else {
    for (int round = 0; round < 2; round++) {
      for (int s = 0; s < shards; s++) {
        const Vector<T, COUNT> vector = load_vector<T, COUNT>(deltas + s * entries + at);
        for (int i = 0; i < COUNT; i++) {
          const float part = contribution(to_float(vector.values[i]), search[s].threshold, weights[s]);
          if (round == 0) {
            merging[i].sum = __fadd_rn(merging[i].sum, part);
          } else {
            add_agreeing(merging[i], part, weights[s]);
          }
        }
      }
    }
  }
  Vector<T, COUNT> out;
#pragma unroll
  for (int i = 0; i < COUNT; i++) {
    out.values[i] = from_float<T>(merging[i].mass == 0.0f ? 0.0f : merging[i].total / merging[i].mass);
  }
  *reinterpret_cast<Vector<T, COUNT>*>(merged + at) = out;
}

struct Arguments {
  const void* deltas;
  const float* weights;
  const std::int64_t* keep;
  int shards;
  std::int64_t entries;
  Search* search;
  std::uint32_t* histogram;
  bool sampled;
  void* merged;
  cudaStream_t stream;
};

template <typename T, int COUNT, int SHARDS>
cudaError_t launch_merge(const Arguments& op) {
  const std::int64_t blocks = (op.entries / COUNT + THREADS - 1) / THREADS;
  return launch(merge<T, COUNT, SHARDS>, dim3(static_cast<unsigned>(blocks)), dim3(THREADS), 0, op.stream,
                static_cast<const T*>(op.deltas), op.weights, op.search, op.shards, op.entries,
                static_cast<T*>(op.merged));
}

template <typename T, int COUNT>
cudaError_t run(const Arguments& op) {
  for (int start = 0; start < op.shards; start += GROUP) {
    const int group = op.shards - start < GROUP ? op.shards - start : GROUP;
    Shards shards{op.entries, {}, op.search + start, op.histogram + start * BINS};
    for (int s = 0; s < group; s++) shards.keep[s] = op.keep[start + s];
    const T* source = static_cast<const T*>(op.deltas) + start * op.entries;
    const std::int64_t useful = (op.entries / COUNT + THREADS - 1) / THREADS, most = COUNTING_BLOCKS / group;
    const dim3 grid(static_cast<unsigned>(useful < most ? useful : most), group);
    // A guess takes one pass, or two where keys have too many bits for one; a refuted one is followed by a full search.
    int passes = (Key<T>::BITS + DIGIT - 1) / DIGIT;
    if (op.sampled) {
      passes += 1;
      const cudaError_t status = launch(count<T, COUNT, true>, grid, dim3(THREADS), 0, op.stream, source, shards);
      if (status != cudaSuccess) return status;
    }
    for (int pass = 0; pass < passes; pass++) {
      const cudaError_t status = launch(count<T, COUNT, false>, grid, dim3(THREADS), 0, op.stream, source, shards);
      if (status != cudaSuccess) return status;
    }
  }
  switch (op.shards) {
    case 1: return launch_merge<T, COUNT, 1>(op);
    case 2: return launch_merge<T, COUNT, 2>(op);
    case 3: return launch_merge<T, COUNT, 3>(op);
    case 4: return launch_merge<T, COUNT, 4>(op);
    case 5: return launch_merge<T, COUNT, 5>(op);
    case 6: return launch_merge<T, COUNT, 6>(op);
    case 7: return launch_merge<T, COUNT, 7>(op);
    case 8: return launch_merge<T, COUNT, 8>(op);
    default: return launch_merge<T, COUNT, 0>(op);
  }
}

// 16 bytes at a time where every shard starts on 16 bytes.
template <typename T>
cudaError_t run_aligned(const Arguments& op) {
  constexpr int COUNT = 16 / sizeof(T);
  return op.entries % COUNT == 0 && is_aligned(op.deltas) && is_aligned(op.merged) ? run<T, COUNT>(op) : run<T, 1>(op);
}

}  // namespace

extern "C" std::size_t corrigenda_ties_merge_scratch_bytes(std::int64_t shards) {
  return shards * (sizeof(Search) + BINS * sizeof(std::uint32_t));
}

extern "C" cudaError_t corrigenda_ties_merge(const void* deltas, const float* weights, const std::int64_t* keep,
                                             std::int64_t shards, std::int64_t entries, int dtype,
                                             std::int64_t sampled_from, void* merged, void* scratch,
                                             cudaStream_t stream) {
  if (entries == 0) return cudaSuccess;
  const cudaError_t status = cudaMemsetAsync(scratch, 0, corrigenda_ties_merge_scratch_bytes(shards), stream);
  if (status != cudaSuccess) return status;
  Search* search = static_cast<Search*>(scratch);
  const Arguments op{deltas,
                     weights,
                     keep,
                     static_cast<int>(shards),
                     entries,
                     search,
                     reinterpret_cast<std::uint32_t*>(search + shards),
                     entries >= sampled_from,
                     merged,
                     stream};
  switch (dtype) {
    case FLOAT32: return run_aligned<float>(op);
    case BFLOAT16: return run_aligned<__nv_bfloat16>(op);
    case FLOAT16: return run_aligned<__half>(op);
    default: return cudaErrorInvalidValue;
  }
}
