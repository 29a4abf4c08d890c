// token_overlap: a block holds its query's tokens as bits of shared memory and takes stored rows in turns.
#include "token_overlap.h"

#include <algorithm>

#include "primitives.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int LANES = 8;  // threads of a row; an edit's prompt is some ten tokens
constexpr int ROWS_PER_BLOCK = THREADS / LANES;
// Blocks of one query: each fills the query's table anew, so with many queries there are few.
constexpr std::int64_t MOST_BLOCKS = 128, LEAST_BLOCKS = 4, BLOCKS_IN_ALL = 1024;

struct Search : TokenOverlapArguments {
  unsigned long long* best;  // [batch, blocks, 2] scratch
  unsigned* finished;        // [batch] scratch, zero
};

// The two best rows, each as one number: the score's bits (never negative, so they order as it does) and, for equal
// scores, the lowest row. 0 is no row, which is why the bits count from 1.
struct Best {
  unsigned long long first, second;
};

__device__ __forceinline__ unsigned long long score_key(float score, std::int64_t row) {
  return (static_cast<unsigned long long>(__float_as_uint(score) + 1) << 32) |
         (0xFFFFFFFFu - static_cast<unsigned>(row));
}

__device__ __forceinline__ float score_of(unsigned long long key) {
  return key == 0 ? 0.0f : __uint_as_float(static_cast<unsigned>(key >> 32) - 1);
}

__device__ __forceinline__ void merge(Best& best, unsigned long long first, unsigned long long second) {
  const unsigned long long loser = first > best.first ? best.first : first;
  best.first = first > best.first ? first : best.first;
  const unsigned long long runner_up = second > best.second ? second : best.second;
  best.second = loser > runner_up ? loser : runner_up;
}

template <int STEP_FROM>
__device__ __forceinline__ void merge_lanes(Best& best) {
#pragma unroll
  for (int step = STEP_FROM; step < WARP_SIZE; step *= 2) {
    const unsigned long long first = __shfl_xor_sync(FULL_WARP, best.first, step);
    const unsigned long long second = __shfl_xor_sync(FULL_WARP, best.second, step);
    merge(best, first, second);
  }
}

// The rounding of the reference: every operation on its own, none fused.
__device__ __forceinline__ float tversky(int shared, int own, int rest, float extra_weight) {
  const float mass = __fadd_rn(static_cast<float>(own), __fmul_rn(extra_weight, static_cast<float>(rest)));
  return mass > 0 ? __fdiv_rn(static_cast<float>(shared), mass) : 0.0f;
}

__global__ __launch_bounds__(THREADS) void score_rows(Search arguments) {
  DYNAMIC_SHARED(unsigned, asked);  // [vocabulary / 32], one bit a token
  SHARED_ARRAY(int, query_mass, 1);
  SHARED_ARRAY(Best, warp_best, THREADS / WARP_SIZE);
  SHARED_ARRAY(unsigned, is_last, 1);
  const std::int64_t b = blockIdx.y;
  for (int word = threadIdx.x; word < ceil_div(arguments.vocabulary, 32); word += THREADS) asked[word] = 0;
  if (threadIdx.x == 0) *query_mass = 0;
  __syncthreads();
  int mass = 0;
  for (std::int64_t i = threadIdx.x; i < arguments.query_length; i += THREADS) {
    const int token = arguments.query[b * arguments.query_length + i];
    if (token < 0) continue;
    atomicOr(&asked[token / 32], 1u << token % 32);
    mass += arguments.rarity[token];
  }
  mass = lanes_sum(mass);
  if (threadIdx.x % WARP_SIZE == 0 && mass != 0) atomicAdd(query_mass, mass);
  __syncthreads();
  mass = *query_mass;

  std::int64_t rows = arguments.rows;
  if (arguments.valid != nullptr && *arguments.valid < rows) rows = *arguments.valid;
  const int lane = threadIdx.x % LANES;
  Best best{0, 0};
  for (std::int64_t start = std::int64_t{blockIdx.x} * ROWS_PER_BLOCK; start < rows;
       start += std::int64_t{gridDim.x} * ROWS_PER_BLOCK) {
    const std::int64_t row = start + threadIdx.x / LANES;
    const bool seen = row < rows && (arguments.query_group == nullptr ||
                                     arguments.query_group[b] == arguments.stored_group[row]);
    int shared = 0, own = 0;
    for (std::int64_t i = lane; seen && i < arguments.stored_length; i += LANES) {
      const int token = arguments.stored[row * arguments.stored_length + i];
      if (token < 0) continue;
      const int weight = __ldg(&arguments.rarity[token]);
      own += weight;
      if (asked[token / 32] >> token % 32 & 1) shared += weight;
    }
    shared = lanes_sum<LANES>(shared);
    own = lanes_sum<LANES>(own);
    if (seen) merge(best, score_key(tversky(shared, own, mass - shared, arguments.extra_weight), row), 0);
  }
  // The lanes of a row hold the same, so lanes of different rows alone are merged: none may meet its own row again.
  merge_lanes<LANES>(best);
  if (threadIdx.x % WARP_SIZE == 0) warp_best[threadIdx.x / WARP_SIZE] = best;
  __syncthreads();
  unsigned long long* blocks_best = arguments.best + b * gridDim.x * 2;
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < THREADS / WARP_SIZE; ++warp) {
      merge(best, warp_best[warp].first, warp_best[warp].second);
    }
    blocks_best[blockIdx.x * 2] = best.first;
    blocks_best[blockIdx.x * 2 + 1] = best.second;
  }
  if (!last_block_done(&arguments.finished[b], gridDim.x, is_last) || threadIdx.x >= WARP_SIZE) return;
  best = {0, 0};
  for (unsigned block = threadIdx.x; block < gridDim.x; block += WARP_SIZE) {
    merge(best, __ldcg(&blocks_best[block * 2]), __ldcg(&blocks_best[block * 2 + 1]));
  }
  merge_lanes<1>(best);
  if (threadIdx.x == 0) {
    arguments.index[b] = best.first == 0 ? -1 : static_cast<int>(0xFFFFFFFFu - static_cast<unsigned>(best.first));
    arguments.score[b] = score_of(best.first);
    arguments.runner_up[b] = score_of(best.second);
  }
}

std::int64_t blocks_per_query(std::int64_t batch, std::int64_t rows) {
  const std::int64_t useful = ceil_div(std::max<std::int64_t>(rows, 1), ROWS_PER_BLOCK);
  const std::int64_t fair = BLOCKS_IN_ALL / std::max<std::int64_t>(batch, 1);
  return std::min(useful, std::clamp(fair, LEAST_BLOCKS, MOST_BLOCKS));
}

}  // namespace

extern "C" std::size_t corrigenda_token_overlap_scratch_bytes(const TokenOverlapArguments& arguments) {
  const std::int64_t blocks = blocks_per_query(arguments.batch, arguments.rows);
  return arguments.batch * (blocks * 2 * sizeof(unsigned long long) + sizeof(unsigned));
}

extern "C" cudaError_t corrigenda_token_overlap(const TokenOverlapArguments& arguments, cudaStream_t stream) {
  constexpr std::int64_t MOST_QUERIES = 65535;  // of one grid
  const std::int64_t batch = arguments.batch;
  if (arguments.vocabulary > TOKEN_OVERLAP_WIDEST || batch > MOST_QUERIES) return cudaErrorInvalidValue;
  if (batch == 0) return cudaSuccess;
  const std::int64_t blocks = blocks_per_query(batch, arguments.rows);
  auto* best = static_cast<unsigned long long*>(arguments.scratch);
  auto* finished = reinterpret_cast<unsigned*>(best + batch * blocks * 2);
  const cudaError_t status = cudaMemsetAsync(finished, 0, batch * sizeof(unsigned), stream);
  if (status != cudaSuccess) return status;
  return launch(score_rows, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(batch)), dim3(THREADS),
                ceil_div(arguments.vocabulary, 32) * 4, stream, Search{arguments, best, finished});
}
