// nearest_key: a warp sums the distance of one stored key at a time; blocks agree by one number to maximise.
#include "nearest_key.h"

#include <algorithm>

#include "primitives.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int ROWS_PER_BLOCK = THREADS / WARP_SIZE;
constexpr unsigned INFINITE = 0x7F800000u;  // the bits of infinity
// Blocks of one query: enough of them to keep a large GPU's memory busy, fewer where queries share it.
constexpr std::int64_t MOST_BLOCKS = 1024, LEAST_BLOCKS = 8, BLOCKS_IN_ALL = 2048;

struct Search : NearestKeyArguments {
  unsigned long long* best;  // [batch] scratch, zero
  unsigned* finished;        // [batch] scratch, zero
};

// The nearer, then the lower row, as one number to maximise; 0 is no row. Distances are not negative, so their bits
// order as they do.
__device__ __forceinline__ unsigned long long nearness(float distance, std::int64_t row) {
  const unsigned bits = __float_as_uint(distance);
  if (bits >= INFINITE) return 0;  // infinite, or no number
  return (static_cast<unsigned long long>(INFINITE - bits) << 32) | (0xFFFFFFFFu - static_cast<unsigned>(row));
}

template <typename T, bool COSINE>
__device__ __forceinline__ float distance_of(const T* query, const T* stored, std::int64_t width, int lane) {
  float first = 0, own = 0, length = 0;
#pragma unroll 4
  for (std::int64_t i = lane; i < width; i += WARP_SIZE) {
    const float q = to_float(query[i]), k = to_float(stored[i]);
    if (COSINE) {
      first = __fmaf_rn(q, k, first);
      own = __fmaf_rn(k, k, own);
      length = __fmaf_rn(q, q, length);
    } else {
      first = __fmaf_rn(q - k, q - k, first);
    }
  }
  first = lanes_sum(first);
  if (!COSINE) return first;
  const float norms = sqrtf(lanes_sum(own)) * sqrtf(lanes_sum(length));
  const float apart = 1.0f - (norms > 0 ? __fdiv_rn(first, norms) : 0.0f);
  return apart < 0 ? 0.0f : apart;
}

template <typename T, bool COSINE>
__global__ void __launch_bounds__(THREADS) find_nearest(Search arguments) {
  SHARED_ARRAY(unsigned long long, warp_best, ROWS_PER_BLOCK);
  SHARED_ARRAY(unsigned, is_last, 1);
  const std::int64_t b = blockIdx.y;
  const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
  const T* query = static_cast<const T*>(arguments.query) + b * arguments.width;
  const T* stored = static_cast<const T*>(arguments.stored);
  std::int64_t rows = arguments.rows;
  if (arguments.valid != nullptr && *arguments.valid < rows) rows = *arguments.valid;
  unsigned long long best = 0;
  for (std::int64_t row = std::int64_t{blockIdx.x} * ROWS_PER_BLOCK + warp; row < rows;
       row += std::int64_t{gridDim.x} * ROWS_PER_BLOCK) {
    if (arguments.query_group != nullptr && arguments.query_group[b] != arguments.stored_group[row]) continue;
    const float distance = distance_of<T, COSINE>(query, stored + row * arguments.width, arguments.width, lane);
    const unsigned long long key = nearness(distance, row);
    best = key > best ? key : best;
  }
  if (lane == 0) warp_best[warp] = best;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int other = 1; other < ROWS_PER_BLOCK; ++other) best = warp_best[other] > best ? warp_best[other] : best;
    if (best != 0) atomicMax(&arguments.best[b], best);
  }
  if (!last_block_done(&arguments.finished[b], gridDim.x, is_last) || threadIdx.x != 0) return;
  const unsigned long long key = __ldcg(&arguments.best[b]);
  const int index = key == 0 ? -1 : static_cast<int>(0xFFFFFFFFu - static_cast<unsigned>(key));
  float distance = __uint_as_float(INFINITE - static_cast<unsigned>(key >> 32));
  if (!COSINE) distance = sqrtf(distance);
  const bool reached = index >= 0 && (arguments.radius == nullptr || distance <= arguments.radius[index]);
  arguments.index[b] = index;
  arguments.distance[b] = distance;
  arguments.route[b] = reached ? index : -1;
}

std::int64_t blocks_per_query(std::int64_t batch, std::int64_t rows) {
  const std::int64_t useful = ceil_div(std::max<std::int64_t>(rows, 1), ROWS_PER_BLOCK);
  const std::int64_t fair = BLOCKS_IN_ALL / std::max<std::int64_t>(batch, 1);
  return std::min(useful, std::clamp(fair, LEAST_BLOCKS, MOST_BLOCKS));
}

template <typename T>
cudaError_t start(const Search& search, std::int64_t blocks, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(search.batch));
  if (search.cosine) return launch(find_nearest<T, true>, grid, dim3(THREADS), 0, stream, search);
  return launch(find_nearest<T, false>, grid, dim3(THREADS), 0, stream, search);
}

}  // namespace

extern "C" std::size_t corrigenda_nearest_key_scratch_bytes(const NearestKeyArguments& arguments) {
  return arguments.batch * (sizeof(unsigned long long) + sizeof(unsigned));
}

extern "C" cudaError_t corrigenda_nearest_key(const NearestKeyArguments& arguments, cudaStream_t stream) {
  constexpr std::int64_t MOST_QUERIES = 65535;  // of one grid
  const std::int64_t batch = arguments.batch;
  if (batch > MOST_QUERIES) return cudaErrorInvalidValue;
  if (batch == 0) return cudaSuccess;
  const std::size_t bytes = corrigenda_nearest_key_scratch_bytes(arguments);
  const cudaError_t status = cudaMemsetAsync(arguments.scratch, 0, bytes, stream);
  if (status != cudaSuccess) return status;
  auto* best = static_cast<unsigned long long*>(arguments.scratch);
  const Search search{arguments, best, reinterpret_cast<unsigned*>(best + batch)};
  const std::int64_t blocks = blocks_per_query(batch, arguments.rows);
  switch (arguments.query_dtype) {
    case FLOAT32: return start<float>(search, blocks, stream);
    case BFLOAT16: return start<__nv_bfloat16>(search, blocks, stream);
    case FLOAT16: return start<__half>(search, blocks, stream);
    default: return cudaErrorInvalidValue;
  }
}
