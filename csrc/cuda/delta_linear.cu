// delta_linear: the product by masked_linear's kernels, under one mask of all bits; then distances, then scores.
//
// Few tokens read delta once in its own format, which is all that decoding costs (117 MB of bfloat16 at 14336 x 4096,
// 27 us at 4.3 TB/s); many take the tiles. What comes after reads the side output and the base, 4 MB for 128 tokens.
#include "delta_linear.h"

#include <algorithm>

#include "elements.cuh"
#include "masked_linear.h"

namespace {

constexpr int THREADS = 256;

struct DeltaLinear {
  Elements base;
  const int* offsets;
  const float* weight;
  bool activated;
  std::int64_t longest, tokens, outputs;
  float* side;
  float* distance;
  float* score;
};

// What masked_linear adds to and by: zeros, the mask of all bits below `width`, and every token's route to it.
__global__ void __launch_bounds__(THREADS) prepare(float* side, unsigned* mask, int* route, std::int64_t tokens,
                                                   std::int64_t width, std::int64_t outputs) {
  const std::int64_t i = std::int64_t{blockIdx.x} * THREADS + threadIdx.x;
  if (i < tokens * outputs) side[i] = 0;
  if (i < tokens) route[i] = 0;
  if (i < ceil_div(width, 32)) mask[i] = width - i * 32 >= 32 ? ~0u : (1u << (width % 32)) - 1;
}

__device__ __forceinline__ float silu(float x) { return x / (1 + expf(-x)); }

// One token a block.
__global__ void __launch_bounds__(THREADS) measure(DeltaLinear op) {
  SHARED_ARRAY(float, partial, THREADS / WARP_SIZE);
  wait_for_previous_grid();
  const std::int64_t token = blockIdx.x;
  float sum = 0;
#pragma unroll 4
  for (std::int64_t i = threadIdx.x; i < op.outputs; i += THREADS) {
    const std::int64_t place = token * op.outputs + i;
    float change = op.side[place];
    if (op.activated) {
      const float base = op.base[place];
      change = silu(base + change) - silu(base);
    }
    sum = __fmaf_rn(change, change, sum);
  }
  sum = lanes_sum(sum);
  if (threadIdx.x % WARP_SIZE == 0) partial[threadIdx.x / WARP_SIZE] = sum;
  __syncthreads();
  if (threadIdx.x >= WARP_SIZE) return;
  sum = lanes_sum(threadIdx.x < THREADS / WARP_SIZE ? partial[threadIdx.x] : 0.0f);
  if (threadIdx.x == 0) op.distance[token] = sqrtf(sum);
}

// One sequence a block, of one warp.
__global__ void __launch_bounds__(WARP_SIZE) average(DeltaLinear op) {
  const std::int64_t begin = max(op.offsets[blockIdx.x], 0);
  const std::int64_t end = op.offsets[blockIdx.x + 1] < op.tokens ? op.offsets[blockIdx.x + 1] : op.tokens;
  wait_for_previous_grid();
  float total = 0, mass = 0, largest = 0;
  int count = 0;
  for (std::int64_t t = begin + threadIdx.x; t < end; t += WARP_SIZE) {
    const float share = op.weight == nullptr ? 1.0f : op.weight[t];
    if (!(share > 0)) continue;
    const float distance = op.distance[t];
    total = __fmaf_rn(share, distance, total);
    mass += share;
    largest = fmaxf(largest, distance);
    count++;
  }
  total = lanes_sum(total), mass = lanes_sum(mass), largest = lanes_max(largest), count = lanes_sum(count);
  if (threadIdx.x != 0) return;
  // A maximum passes over NaN, a sum does not.
  const float mean = count > 0 ? total / mass : 0.0f;
  op.score[blockIdx.x] = count > op.longest && total == total ? largest : mean;
}

// side += x delta, as masked_linear under the mask and the routes of `prepare`.
MaskedLinearArguments product_of(const DeltaLinearArguments& arguments, const unsigned* mask, const int* route) {
  MaskedLinearArguments product{};
  product.y = product.out = arguments.side;
  product.y_dtype = FLOAT32;
  product.x = arguments.x;
  product.x_dtype = arguments.x_dtype;
  product.memory = arguments.delta;
  product.memory_dtype = arguments.delta_dtype;
  product.masks = mask;
  product.route = route;
  product.tokens = arguments.tokens;
  product.width = arguments.width;
  product.outputs = arguments.outputs;
  product.scratch = arguments.scratch;
  return product;
}

std::int64_t product_bytes(const DeltaLinearArguments& arguments) {
  return ceil_div(corrigenda_masked_linear_scratch_bytes(product_of(arguments, nullptr, nullptr)), 16) * 16;
}

}  // namespace

extern "C" std::size_t corrigenda_delta_linear_scratch_bytes(const DeltaLinearArguments& arguments) {
  return product_bytes(arguments) + (ceil_div(arguments.width, 32) + arguments.tokens) * sizeof(int);
}

extern "C" cudaError_t corrigenda_delta_linear(const DeltaLinearArguments& arguments, cudaStream_t stream) {
  const std::int64_t tokens = arguments.tokens, width = arguments.width, outputs = arguments.outputs;
  const DeltaLinear op{{arguments.base, arguments.base_dtype},
                       arguments.offsets,
                       arguments.weight,
                       arguments.activated,
                       arguments.longest,
                       tokens,
                       outputs,
                       arguments.side,
                       arguments.distance,
                       arguments.score};
  cudaError_t status = cudaSuccess;
  if (tokens > 0) {
    const std::int64_t words = ceil_div(width, 32);
    char* const behind = static_cast<char*>(arguments.scratch) + product_bytes(arguments);
    unsigned* const mask = reinterpret_cast<unsigned*>(behind);
    int* const route = reinterpret_cast<int*>(mask + words);
    const std::int64_t most = std::max({tokens * outputs, tokens, words});
    status = launch(prepare, dim3(static_cast<unsigned>(ceil_div(most, THREADS))), dim3(THREADS), 0, stream, op.side,
                    mask, route, tokens, width, outputs);
    if (status != cudaSuccess) return status;
    status = corrigenda_masked_linear(product_of(arguments, mask, route), stream);
    if (status != cudaSuccess) return status;
    status = launch_early(measure, dim3(static_cast<unsigned>(tokens)), dim3(THREADS), 0, stream, op);
    if (status != cudaSuccess) return status;
  }
  if (arguments.sequences == 0) return cudaSuccess;
  return launch_early(average, dim3(static_cast<unsigned>(arguments.sequences)), dim3(WARP_SIZE), 0, stream, op);
}
