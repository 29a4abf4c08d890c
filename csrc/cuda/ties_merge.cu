// TIES: trim each shard to its largest magnitudes, elect a sign per entry, average what agrees with it.
#include "ties_merge.h"

#include <algorithm>

#include "ties_search.cuh"

namespace {

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
__global__ void __launch_bounds__(TIES_THREADS)
    merge(const T* deltas, const float* weights, const Search* search, int shards, std::int64_t entries, T* merged) {
  const std::int64_t at = (static_cast<std::int64_t>(blockIdx.x) * TIES_THREADS + threadIdx.x) * COUNT;
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

struct Merging : TiesMergeArguments {
  Search* search;            // [shards]
  std::uint32_t* histogram;  // [shards, BINS]
  cudaStream_t stream;
};

template <typename T, int COUNT, int SHARDS>
cudaError_t launch_merge(const Merging& op) {
  const std::int64_t blocks = (op.entries / COUNT + TIES_THREADS - 1) / TIES_THREADS;
  return launch(merge<T, COUNT, SHARDS>, dim3(static_cast<unsigned>(blocks)), dim3(TIES_THREADS), 0, op.stream,
                static_cast<const T*>(op.deltas), op.weights, op.search, static_cast<int>(op.shards), op.entries,
                static_cast<T*>(op.merged));
}

template <typename T, int COUNT>
cudaError_t run(const Merging& op) {
  for (int start = 0; start < op.shards; start += GROUP) {
    const int group = static_cast<int>(std::min<std::int64_t>(op.shards - start, GROUP));
    Shards shards{op.entries, {}, op.search + start, op.histogram + start * BINS};
    for (int s = 0; s < group; s++) shards.keep[s] = op.keep[start + s];
    const T* source = static_cast<const T*>(op.deltas) + start * op.entries;
    const std::int64_t useful = (op.entries / COUNT + TIES_THREADS - 1) / TIES_THREADS, most = COUNTING_BLOCKS / group;
    const dim3 grid(static_cast<unsigned>(useful < most ? useful : most), group);
    // A guess takes one pass, or two where keys have too many bits for one; a refuted one is followed by a full search.
    int passes = (Key<T>::BITS + DIGIT - 1) / DIGIT;
    if (op.entries >= op.sampled_from) {
      passes += 1;
      const cudaError_t status = launch(count<T, COUNT, true>, grid, dim3(TIES_THREADS), 0, op.stream, source, shards);
      if (status != cudaSuccess) return status;
    }
    for (int pass = 0; pass < passes; pass++) {
      const cudaError_t status = launch(count<T, COUNT, false>, grid, dim3(TIES_THREADS), 0, op.stream, source, shards);
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
cudaError_t run_aligned(const Merging& op) {
  constexpr int COUNT = 16 / sizeof(T);
  return op.entries % COUNT == 0 && is_aligned(op.deltas) && is_aligned(op.merged) ? run<T, COUNT>(op) : run<T, 1>(op);
}

}  // namespace

extern "C" std::size_t corrigenda_ties_merge_scratch_bytes(const TiesMergeArguments& arguments) {
  return arguments.shards * (sizeof(Search) + BINS * sizeof(std::uint32_t));
}

extern "C" cudaError_t corrigenda_ties_merge(const TiesMergeArguments& arguments, cudaStream_t stream) {
  if (arguments.entries == 0) return cudaSuccess;
  auto* search = static_cast<Search*>(arguments.scratch);
  const cudaError_t status = cudaMemsetAsync(search, 0, corrigenda_ties_merge_scratch_bytes(arguments), stream);
  if (status != cudaSuccess) return status;
  const Merging op{arguments, search, reinterpret_cast<std::uint32_t*>(search + arguments.shards), stream};
  switch (arguments.deltas_dtype) {
    case FLOAT32: return run_aligned<float>(op);
    case BFLOAT16: return run_aligned<__nv_bfloat16>(op);
    case FLOAT16: return run_aligned<__half>(op);
    default: return cudaErrorInvalidValue;
  }
}
