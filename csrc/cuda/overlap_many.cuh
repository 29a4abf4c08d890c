// mask_overlap for many queries: tensor cores AND and count 256 bits of 16 stored masks and 8 queries at a time.
#pragma once

#include "overlap_best.cuh"
#include "primitives.cuh"

constexpr int MMA_THREADS = 384;  // 136 registers each, and 512 would leave 128
constexpr int MMA_WARPS = MMA_THREADS / WARP_SIZE;
constexpr int MMA_STACKED = 2;              // tiles of 16 rows that a warp counts against each query it reads
constexpr int MMA_ROWS = 16 * MMA_STACKED;  // of a warp
constexpr int MMA_STEP = 16;                // words of two instructions: 4 in each of the 4 threads of a row

// sums[16, 8] += popcount(rows[16, 256 bits] & queries[8, 256 bits]). Thread t gives word t % 4 of the low and of the
// high half of row t / 4, of row t / 4 + 8 and of query t / 4; it gets sums[0], sums[1] of row t / 4 with query
// t % 4 * 2 and the next, sums[2], sums[3] of row t / 4 + 8 with the same two.
__device__ __forceinline__ void and_popcount(int (&sums)[4], unsigned low, unsigned high, unsigned low_8,
                                             unsigned high_8, unsigned query_low, unsigned query_high) {
#ifdef CORRIGENDA_EMULATE
  using Wide = unsigned long long;
  const int lane = threadIdx.x % WARP_SIZE, group = lane / 4;
  for (int t = 0; t < 4; ++t) {
    const Wide row = __shfl_sync(FULL_WARP, Wide{high} << 32 | low, group * 4 + t);
    const Wide row_8 = __shfl_sync(FULL_WARP, Wide{high_8} << 32 | low_8, group * 4 + t);
    for (int j = 0; j < 2; ++j) {
      const Wide query = __shfl_sync(FULL_WARP, Wide{query_high} << 32 | query_low, (lane % 4 * 2 + j) * 4 + t);
      sums[j] += __popcll(row & query);
      sums[2 + j] += __popcll(row_8 & query);
    }
  }
#elif __CUDA_ARCH__ >= 1000
  __trap();  // no such instruction there, ptxas makes eight of it: has_bit_mma keeps this kernel from running
#else
  asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(low), "r"(low_8), "r"(high), "r"(high_8), "r"(query_low), "r"(query_high));
#endif
}

inline bool has_bit_mma(int compute_capability_major) { return compute_capability_major < 10; }

// Words from one query to the next in shared memory: whole steps, and an odd number of them, so that the 16-byte reads
// of two queries side by side fall into different banks.
__host__ __device__ constexpr std::int64_t mma_query_stride(std::int64_t words) {
  return (ceil_div(words, MMA_STEP) | 1) * MMA_STEP;
}

// The order of the words of a sum is free, so that each thread loads 16 bytes of a row and feeds two instructions.
struct RowPair {
  uint4 row, row_8;
};

__device__ __forceinline__ RowPair load_rows(const OverlapSearch& arguments, std::int64_t row, std::int64_t rows,
                                             int word) {
  const std::uint32_t* at = arguments.stored + row * arguments.words + word;
  const bool within = word < arguments.words;
  RowPair pair{};
  if (within && row < rows) pair.row = __ldg(reinterpret_cast<const uint4*>(at));
  if (within && row + 8 < rows) pair.row_8 = __ldg(reinterpret_cast<const uint4*>(at + 8 * arguments.words));
  return pair;
}

// A block holds 8 TILES queries in shared memory; its warps take turns with 32 stored rows at a time.
template <int TILES>
__global__ __launch_bounds__(MMA_THREADS) void count_many_overlaps(OverlapSearch arguments) {
  constexpr int QUERIES = TILES * 8;
  DYNAMIC_SHARED(unsigned, query);  // [QUERIES, stride]
  SHARED_ARRAY(unsigned long long, block_best, QUERIES);
  SHARED_ARRAY(unsigned, is_last, 1);
  const int words = static_cast<int>(arguments.words);
  const int stride = static_cast<int>(mma_query_stride(words));
  const std::int64_t first = std::int64_t{blockIdx.y} * QUERIES;
  const int queries = static_cast<int>(min(arguments.batch - first, std::int64_t{QUERIES}));

  prefetch_stored(arguments);
  wait_for_previous_grid();
  for (int i = threadIdx.x * 4; i < QUERIES * stride; i += MMA_THREADS * 4) {
    const int q = i / stride, word = i % stride;
    const bool exists = q < queries && word < words;
    const std::uint32_t* source = arguments.query + (first + q) * words + word;
    *reinterpret_cast<uint4*>(query + i) = exists ? *reinterpret_cast<const uint4*>(source) : uint4{};
  }
  if (threadIdx.x < QUERIES) block_best[threadIdx.x] = 0;
  const std::int64_t rows = rows_seen(arguments);
  __syncthreads();

  const int lane = threadIdx.x % WARP_SIZE, group = lane / 4, word_of_lane = lane % 4 * 4;
  const std::int64_t turn = std::int64_t{gridDim.x} * MMA_WARPS * MMA_ROWS;
  for (std::int64_t start = (std::int64_t{blockIdx.x} * MMA_WARPS + threadIdx.x / WARP_SIZE) * MMA_ROWS; start < rows;
       start += turn) {
    int sums[MMA_STACKED][TILES][4] = {};
    RowPair next[MMA_STACKED];
#pragma unroll
    for (int m = 0; m < MMA_STACKED; ++m) {
      next[m] = load_rows(arguments, start + 16 * m + group, rows, word_of_lane);
    }
    for (int word = word_of_lane; word < stride; word += MMA_STEP) {
      RowPair now[MMA_STACKED];
#pragma unroll
      for (int m = 0; m < MMA_STACKED; ++m) {
        now[m] = next[m];  // the next step's loads run while this one counts
        next[m] = load_rows(arguments, start + 16 * m + group, rows, word + MMA_STEP);
      }
#pragma unroll
      for (int n = 0; n < TILES; ++n) {
        const uint4 q = *reinterpret_cast<const uint4*>(query + (n * 8 + group) * stride + word);
#pragma unroll
        for (int m = 0; m < MMA_STACKED; ++m) {
          const uint4 &row = now[m].row, &row_8 = now[m].row_8;
          and_popcount(sums[m][n], row.x, row.y, row_8.x, row_8.y, q.x, q.y);
          and_popcount(sums[m][n], row.z, row.w, row_8.z, row_8.w, q.z, q.w);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int q = n * 8 + lane % 4 * 2 + j;
        if (q >= queries) continue;
        unsigned long long best = 0;
#pragma unroll
        for (int m = 0; m < MMA_STACKED; ++m) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const std::int64_t row = start + 16 * m + 8 * half + group;
            if (row >= rows || !sees(arguments, first + q, row)) continue;
            const unsigned long long key = best_key(sums[m][n][2 * half + j], row);
            best = key > best ? key : best;
          }
        }
        // After some turns hardly any row is the best so far: a read is then cheaper than an atomic.
        if (best > *const_cast<volatile unsigned long long*>(&block_best[q])) atomicMax(&block_best[q], best);
      }
    }
  }
  __syncthreads();
  publish_best(arguments, first, queries, block_best, is_last);
}
