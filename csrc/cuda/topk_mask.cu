// topk_mask: a block of up to 1024 threads a sequence holds the whole row in registers and selects by radix.
//
// Sequences of a token or so are pooled by that block, in the same launch; longer ones by a grid over columns first.
#include "topk_mask.h"

#include "primitives.cuh"
#include "radix_select.cuh"

namespace {

// Entries first .. first + COUNT - 1 of a row, zero beyond its end. `aligned`: 16-byte loads are allowed.
template <int COUNT, typename T>
__device__ __forceinline__ void load_run(const T* row, int first, int width, bool aligned, T (&run)[COUNT]) {
  constexpr int STEP = VECTOR_WIDTH<T> < COUNT ? VECTOR_WIDTH<T> : COUNT;
  if (aligned && first + COUNT <= width) {
    using Load = Vector<T, STEP>;
#pragma unroll
    for (int i = 0; i < COUNT; i += STEP) {
      const Load load = *reinterpret_cast<const Load*>(row + first + i);
#pragma unroll
      for (int j = 0; j < STEP; ++j) run[i + j] = load.values[j];
    }
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) run[i] = first + i < width ? row[first + i] : T{};
  }
}

template <typename T>
__host__ __device__ bool rows_aligned(const T* rows, std::int64_t width) {
  return is_aligned(rows) && width * sizeof(T) % 16 == 0;
}

// Entries of a row of `pooled`: whole runs of the widest kind, so that no load of it looks for the row's end.
__host__ __device__ constexpr std::int64_t pooled_stride(std::int64_t width) { return ceil_div(width, 32) * 32; }

constexpr int POOL_THREADS = 256;
constexpr int POOL_LANES = 8;  // threads side by side read 128 bytes of a token: whole lines, and 224 blocks at 14336
constexpr int POOL_TOKENS = POOL_THREADS / POOL_LANES;

// pooled[b, columns of this block] = the centred mean over the tokens of sequence b; no atomics, so always the same.
template <typename T>
__global__ __launch_bounds__(POOL_THREADS) void pool_tokens(Fingerprint arguments) {
  constexpr int COLUMNS = VECTOR_WIDTH<T>;  // of a thread
  constexpr int WARPS = POOL_THREADS / WARP_SIZE;
  using Sums = float[POOL_LANES][COLUMNS + 1];  // the last column is the mass
  SHARED_ARRAY(Sums, warp_sum, WARPS);
  let_next_grid_start();

  const int width = static_cast<int>(arguments.width);
  const int lane = threadIdx.x % POOL_LANES;
  const int first = (blockIdx.y * POOL_LANES + lane) * COLUMNS;
  const int start = arguments.offsets[blockIdx.x], end = arguments.offsets[blockIdx.x + 1];
  const T* x = static_cast<const T*>(arguments.x);
  const bool aligned = rows_aligned(x, width);
  float sum[COLUMNS + 1] = {};
#pragma unroll 4
  for (int token = start + threadIdx.x / POOL_LANES; token < end; token += POOL_TOKENS) {
    const float weight = arguments.weight == nullptr ? 1.0f : arguments.weight[token];
    T run[COLUMNS];
    load_run(x + std::int64_t{token} * width, first, width, aligned, run);
#pragma unroll
    for (int i = 0; i < COLUMNS; ++i) sum[i] += weight * to_float(run[i]);
    sum[COLUMNS] += weight;
  }
#pragma unroll
  for (int i = 0; i <= COLUMNS; ++i) {
#pragma unroll
    for (int step = POOL_LANES; step < WARP_SIZE; step *= 2) sum[i] += __shfl_xor_sync(FULL_WARP, sum[i], step);
    if (threadIdx.x % WARP_SIZE < POOL_LANES) warp_sum[threadIdx.x / WARP_SIZE][lane][i] = sum[i];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < POOL_LANES * COLUMNS; i += POOL_THREADS) {
    float total = 0, mass = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) {
      total += warp_sum[warp][i / COLUMNS][i % COLUMNS];
      mass += warp_sum[warp][i / COLUMNS][COLUMNS];
    }
    const int column = blockIdx.y * POOL_LANES * COLUMNS + i;
    if (column >= width) continue;
    const float background = arguments.background == nullptr ? 0.0f : arguments.background[column];
    const float mean = mass == 0 ? 0.0f : total / mass;
    arguments.pooled[blockIdx.x * pooled_stride(width) + column] = mean - background;
  }
}

// What `select_mask<Pooled, ...>` reads instead of x: what `pool_tokens` left, float32.
struct Pooled {};

// The centred mean of COUNT columns of sequence blockIdx.x.
template <typename T, int COUNT>
__device__ __forceinline__ void centred_mean(const Fingerprint& arguments, int first, float (&mean)[COUNT]) {
  const int width = static_cast<int>(arguments.width);
  if constexpr (std::is_same_v<T, Pooled>) {
    const float* row = arguments.pooled + blockIdx.x * pooled_stride(width);
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
      const float4 load = first < width ? *reinterpret_cast<const float4*>(row + first + i) : float4{};
      mean[i] = load.x, mean[i + 1] = load.y, mean[i + 2] = load.z, mean[i + 3] = load.w;
    }
  } else {
    const T* x = static_cast<const T*>(arguments.x);
    const bool aligned = rows_aligned(x, width);
    const int start = arguments.offsets[blockIdx.x], end = arguments.offsets[blockIdx.x + 1];
    float background[COUNT] = {}, mass = 0;
    if (arguments.background != nullptr) {
      load_run(arguments.background, first, width, rows_aligned(arguments.background, width), background);
    }
#pragma unroll
    for (int i = 0; i < COUNT; ++i) mean[i] = 0;
    for (int token = start; token < end; ++token) {
      const float weight = arguments.weight == nullptr ? 1.0f : arguments.weight[token];
      T run[COUNT];
      load_run(x + std::int64_t{token} * width, first, width, aligned, run);
#pragma unroll
      for (int i = 0; i < COUNT; ++i) mean[i] += weight * to_float(run[i]);
      mass += weight;
    }
#pragma unroll
    for (int i = 0; i < COUNT; ++i) mean[i] = (mass == 0 ? 0.0f : mean[i] / mass) - background[i];
  }
}

// One block a sequence, COUNT neighbouring columns a thread: the mask of the k largest magnitudes.
template <typename T, int COUNT>
__global__ __launch_bounds__(1024) void select_mask(Fingerprint arguments) {
  DYNAMIC_SHARED(std::uint32_t, mask);  // [words]
  SHARED_ARRAY(RadixScratch, scratch, 1);
  const int width = static_cast<int>(arguments.width);
  const int words = (width + 31) / 32;
  const int first = threadIdx.x * COUNT;
  for (int word = threadIdx.x; word < words; word += blockDim.x) mask[word] = 0;
  clear(*scratch);
  wait_for_previous_grid();
  let_next_grid_start();
  if (arguments.best != nullptr && threadIdx.x == 0) {
    arguments.best[blockIdx.x] = 0;
    arguments.finished[blockIdx.x] = 0;
  }

  unsigned key[COUNT];
  {
    float feature[COUNT];
    centred_mean<T>(arguments, first, feature);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) key[i] = first + i < width ? magnitude_key(feature[i]) : 0;
  }
  // Read now, so that it arrives while the threshold is sought; 32 entries, though, would not fit the registers.
  constexpr bool READ_EARLY = COUNT <= 16;
  unsigned place[READ_EARLY ? COUNT / 2 : 1] = {};  // two in a word
  if (READ_EARLY && arguments.permutation != nullptr) {
    const bool aligned = rows_aligned(arguments.permutation, width);
#pragma unroll
    for (int i = 0; i < COUNT; i += 2) {
      std::int64_t pair[2];
      load_run(arguments.permutation, first + i, width, aligned, pair);
      place[READ_EARLY ? i / 2 : 0] = static_cast<unsigned>(pair[0]) | static_cast<unsigned>(pair[1]) << 16;
    }
  }
  __syncthreads();
  const unsigned chosen = choose_largest(key, static_cast<unsigned>(arguments.k), *scratch);

  if (arguments.permutation != nullptr) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (!(chosen >> i & 1)) continue;
      const unsigned bit = READ_EARLY ? place[READ_EARLY ? i / 2 : 0] >> i % 2 * 16 & 0xFFFF
                                      : static_cast<unsigned>(arguments.permutation[first + i]);
      atomicOr(&mask[bit / 32], 1u << bit % 32);
    }
  } else if (chosen != 0) {
    atomicOr(&mask[first / 32], chosen << first % 32);
  }
  __syncthreads();
  for (int word = threadIdx.x; word < words; word += blockDim.x) {
    arguments.masks[std::int64_t{blockIdx.x} * words + word] = mask[word];
  }
}

// Up to these many tokens a sequence the block that selects pools too: 8 tokens of 14336 bfloat16 are 3600 cycles of
// one processor's L2 bandwidth, about what a launch of its own costs.
constexpr std::int64_t POOLED_ALONG = 8;
// Above, a thread holds 32 entries, and registers do not suffice to pool as well.
constexpr std::int64_t WIDEST_POOLED_ALONG = 16384;

bool pools_apart(std::int64_t tokens, std::int64_t batch, std::int64_t width) {
  if (width > WIDEST_POOLED_ALONG) return true;
  return tokens > POOLED_ALONG && tokens > 2 * batch;  // the mean length: the lengths are on the device
}

template <typename T, int COUNT>
cudaError_t launch_select(const Fingerprint& arguments, cudaStream_t stream) {
  const std::int64_t threads = ceil_div(ceil_div(arguments.width, COUNT), WARP_SIZE) * WARP_SIZE;
  const dim3 grid(static_cast<unsigned>(arguments.batch));
  const dim3 block(static_cast<unsigned>(threads < 256 ? 256 : threads));  // 256 also for the histogram's sake
  const std::size_t shared = ceil_div(arguments.width, 32) * 4;
  if (std::is_same_v<T, Pooled>) {
    return launch_early(select_mask<T, COUNT>, grid, block, shared, stream, arguments);
  }
  return launch(select_mask<T, COUNT>, grid, block, shared, stream, arguments);
}

template <typename T>
cudaError_t launch_narrow(const Fingerprint& arguments, cudaStream_t stream) {
  if (arguments.width <= 4 * 1024) return launch_select<T, 4>(arguments, stream);
  return launch_select<T, 16>(arguments, stream);
}

template <typename T>
cudaError_t launch_typed(const Fingerprint& arguments, cudaStream_t stream) {
  if (!pools_apart(arguments.tokens, arguments.batch, arguments.width)) return launch_narrow<T>(arguments, stream);
  const std::int64_t tiles = ceil_div(arguments.width, POOL_LANES * VECTOR_WIDTH<T>);
  const dim3 grid(static_cast<unsigned>(arguments.batch), static_cast<unsigned>(tiles));
  const cudaError_t status = launch(pool_tokens<T>, grid, dim3(POOL_THREADS), 0, stream, arguments);
  if (status != cudaSuccess) return status;
  if (arguments.width <= WIDEST_POOLED_ALONG) return launch_narrow<Pooled>(arguments, stream);
  return launch_select<Pooled, 32>(arguments, stream);
}

}  // namespace

std::size_t fingerprint_scratch_bytes(const FeatureArguments& arguments) {
  if (!pools_apart(arguments.tokens, arguments.batch, arguments.width)) return 0;
  return arguments.batch * pooled_stride(arguments.width) * sizeof(float);
}

cudaError_t launch_fingerprint(const Fingerprint& arguments, cudaStream_t stream) {
  if (arguments.width > TOPK_MASK_WIDEST) return cudaErrorInvalidValue;
  if (arguments.batch == 0) return cudaSuccess;
  if (arguments.x_dtype == FLOAT32) return launch_typed<float>(arguments, stream);
  if (arguments.x_dtype == BFLOAT16) return launch_typed<__nv_bfloat16>(arguments, stream);
  if (arguments.x_dtype == FLOAT16) return launch_typed<__half>(arguments, stream);
  return cudaErrorInvalidValue;
}

extern "C" std::size_t corrigenda_topk_mask_scratch_bytes(const TopkMaskArguments& arguments) {
  return fingerprint_scratch_bytes(arguments);
}

extern "C" cudaError_t corrigenda_topk_mask(const TopkMaskArguments& arguments, cudaStream_t stream) {
  auto* pooled = static_cast<float*>(arguments.scratch);
  return launch_fingerprint({arguments, pooled, arguments.masks, nullptr, nullptr}, stream);
}
