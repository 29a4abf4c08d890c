// mask_overlap: by popcount for a few queries, which is bound by memory for up to four; by tensor cores for more.
#include "mask_overlap.h"

#include <algorithm>

#include "overlap_best.cuh"
#include "overlap_many.cuh"
#include "primitives.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int LANES = 8;   // threads of a row: 14336 bits are 112 16-byte loads, 14 for each of 8 threads
constexpr int UNROLL = 7;  // loads in flight a thread; popcount_of_seven counts them together
constexpr int ROWS_PER_BLOCK = THREADS / LANES;
template <int QUERIES>
constexpr int RESIDENT = QUERIES == 1 ? 3 : 2;  // blocks of a processor: 74 and 90 registers a thread on sm_90
constexpr std::int64_t PREFETCHED_BYTES = 24 << 20;  // half of an H200's L2

// A block takes the stored rows in turns with the other blocks, and counts each against its QUERIES queries.
template <typename Load, int QUERIES>
__global__ __launch_bounds__(THREADS, RESIDENT<QUERIES>) void count_overlaps(OverlapSearch arguments) {
  constexpr int WORDS = sizeof(Load) / 4;
  union Chunk {
    Load load[UNROLL];
    unsigned word[UNROLL][WORDS];
  };
  DYNAMIC_SHARED(Load, query);  // [QUERIES, loads]
  SHARED_ARRAY(unsigned long long, block_best, QUERIES);
  SHARED_ARRAY(unsigned, is_last, 1);
  const int loads = static_cast<int>(arguments.words / WORDS);
  const std::int64_t first = std::int64_t{blockIdx.y} * QUERIES;
  const int queries = static_cast<int>(min(arguments.batch - first, std::int64_t{QUERIES}));

  prefetch_stored(arguments);
  wait_for_previous_grid();
  const Load* source = reinterpret_cast<const Load*>(arguments.query + first * arguments.words);
  for (int i = threadIdx.x; i < queries * loads; i += THREADS) query[i] = source[i];
  if (threadIdx.x < QUERIES) block_best[threadIdx.x] = 0;
  const std::int64_t rows = rows_seen(arguments);
  __syncthreads();

  const int lane = threadIdx.x % LANES;
  unsigned long long best[QUERIES] = {};
  for (std::int64_t start = std::int64_t{blockIdx.x} * ROWS_PER_BLOCK; start < rows;
       start += std::int64_t{gridDim.x} * ROWS_PER_BLOCK) {
    const std::int64_t row = start + threadIdx.x / LANES;
    bool seen[QUERIES], any = false;
#pragma unroll
    for (int q = 0; q < QUERIES; ++q) {
      seen[q] = q < queries && row < rows && sees(arguments, first + q, row);
      any = any || seen[q];
    }
    const Load* mask = reinterpret_cast<const Load*>(arguments.stored + row * arguments.words);
    int count[QUERIES] = {};
    for (int base = lane; any && base < loads; base += LANES * UNROLL) {
      Chunk chunk;
#pragma unroll
      for (int i = 0; i < UNROLL; ++i) {
        const int at = base + i * LANES;
        chunk.load[i] = at < loads ? __ldg(mask + at) : Load{};
      }
#pragma unroll
      for (int q = 0; q < QUERIES; ++q) {
        if (q >= queries) break;
        Chunk shared;
#pragma unroll
        for (int i = 0; i < UNROLL; ++i) {
          const int at = base + i * LANES;
          shared.load[i] = at < loads ? query[q * loads + at] : Load{};
        }
#pragma unroll
        for (int w = 0; w < WORDS; ++w) {
          unsigned both[UNROLL];
#pragma unroll
          for (int i = 0; i < UNROLL; ++i) both[i] = chunk.word[i][w] & shared.word[i][w];
          count[q] += popcount_of_seven(both);
        }
      }
    }
#pragma unroll
    for (int q = 0; q < QUERIES; ++q) {
      const int overlap = lanes_sum<LANES>(count[q]);
      const unsigned long long key = seen[q] ? best_key(overlap, row) : 0;
      best[q] = key > best[q] ? key : best[q];
    }
  }
#pragma unroll
  for (int q = 0; q < QUERIES; ++q) {
    const unsigned long long warp_best = lanes_max(best[q]);
    if (threadIdx.x % WARP_SIZE == 0 && q < queries) atomicMax(&block_best[q], warp_best);
  }
  __syncthreads();
  publish_best(arguments, first, queries, block_best, is_last);
}

// As many blocks as are resident at once; each takes rows until there are none.
template <typename Load, int QUERIES>
cudaError_t launch_count(const OverlapSearch& arguments, int processors, bool early, cudaStream_t stream) {
  const std::int64_t tiles = ceil_div(arguments.batch, QUERIES);
  const std::int64_t useful = ceil_div(std::max<std::int64_t>(arguments.rows, 1), ROWS_PER_BLOCK);
  const std::int64_t resident = std::int64_t{processors} * RESIDENT<QUERIES>;
  const dim3 grid(static_cast<unsigned>(std::min(useful, resident)), static_cast<unsigned>(tiles));
  const std::size_t shared = QUERIES * arguments.words * 4;
  return early ? launch_early(count_overlaps<Load, QUERIES>, grid, dim3(THREADS), shared, stream, arguments)
               : launch(count_overlaps<Load, QUERIES>, grid, dim3(THREADS), shared, stream, arguments);
}

template <int TILES>
cudaError_t launch_many(const OverlapSearch& arguments, int processors, bool early, std::size_t shared,
                        cudaStream_t stream) {
  const std::int64_t tiles = ceil_div(arguments.batch, TILES * 8);
  const std::int64_t useful = ceil_div(std::max<std::int64_t>(arguments.rows, 1), MMA_WARPS * MMA_ROWS);
  // All tiles of queries at once, one block a processor: they read the same rows at about the same time, from L2.
  const std::int64_t resident = std::max<std::int64_t>(processors / tiles, 1);
  const dim3 grid(static_cast<unsigned>(std::min(useful, resident)), static_cast<unsigned>(tiles));
  return early ? launch_early(count_many_overlaps<TILES>, grid, dim3(MMA_THREADS), shared, stream, arguments)
               : launch(count_many_overlaps<TILES>, grid, dim3(MMA_THREADS), shared, stream, arguments);
}

// By 16 POPC a cycle and processor, popcounts of eight queries take twice as long as reading the masks on an H200; so
// above, the tensor cores' turn. From the rates, not from a measurement.
constexpr std::int64_t MOST_COUNTED = 8;
constexpr std::int64_t FEW_TILES = 2, MANY_TILES = 8;  // of eight queries, in the shared memory of a block

cudaError_t launch_vectors(const OverlapSearch& arguments, int processors, bool early, cudaStream_t stream) {
  constexpr std::size_t STATIC_SHARED = 1024;  // more than the kernel's own arrays
  int most_shared = 0, major = 0;
  cudaError_t status = device_attribute(&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (status == cudaSuccess) status = device_attribute(&major, cudaDevAttrComputeCapabilityMajor);
  if (status != cudaSuccess) return status;
  if (arguments.batch == 1) return launch_count<uint4, 1>(arguments, processors, early, stream);
  const bool few = arguments.batch <= FEW_TILES * 8;
  const std::size_t shared = (few ? FEW_TILES : MANY_TILES) * 8 * mma_query_stride(arguments.words) * 4;
  const bool fits = shared + STATIC_SHARED <= static_cast<std::size_t>(most_shared);
  if (arguments.batch <= MOST_COUNTED || !fits || !has_bit_mma(major)) {
    return launch_count<uint4, 4>(arguments, processors, early, stream);
  }
  return few ? launch_many<FEW_TILES>(arguments, processors, early, shared, stream)
             : launch_many<MANY_TILES>(arguments, processors, early, shared, stream);
}

// Rows that 16-byte loads cannot read: odd widths and views.
cudaError_t launch_words(const OverlapSearch& arguments, int processors, bool early, cudaStream_t stream) {
  return arguments.batch == 1 ? launch_count<unsigned, 1>(arguments, processors, early, stream)
                              : launch_count<unsigned, 4>(arguments, processors, early, stream);
}

}  // namespace

cudaError_t launch_overlap(const OverlapSearch& requested, bool early, cudaStream_t stream) {
  if (requested.batch == 0) return cudaSuccess;
  int processors = 0;
  const cudaError_t status = device_attribute(&processors, cudaDevAttrMultiProcessorCount);
  if (status != cudaSuccess) return status;
  OverlapSearch arguments = requested;
  if (early) arguments.prefetched = std::min(arguments.rows, PREFETCHED_BYTES / (arguments.words * 4));
  const bool vectors = arguments.words % 4 == 0 && is_aligned(arguments.query) && is_aligned(arguments.stored);
  return vectors ? launch_vectors(arguments, processors, early, stream)
                 : launch_words(arguments, processors, early, stream);
}

extern "C" std::size_t corrigenda_mask_overlap_scratch_bytes(const MaskOverlapArguments& arguments) {
  return overlap_scratch_bytes(arguments.batch);
}

extern "C" cudaError_t corrigenda_mask_overlap(const MaskOverlapArguments& arguments, cudaStream_t stream) {
  auto* best = static_cast<unsigned long long*>(arguments.scratch);
  auto* finished = reinterpret_cast<unsigned*>(best + arguments.batch);
  const cudaError_t status = cudaMemsetAsync(best, 0, overlap_scratch_bytes(arguments.batch), stream);
  if (status != cudaSuccess) return status;
  return launch_overlap({arguments, best, finished, nullptr, nullptr, 0}, false, stream);
}
