// adapter_linear: a block reads one token's adapter, all of `down` and its columns of `up`, in one launch.
#include "adapter_linear.h"

#include "elements.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP_SIZE;
constexpr int TOGETHER = 4;     // rows of `down` that share a pass over x
constexpr int COLUMNS = 1024;   // of `up`, four a thread
constexpr int PROCESSORS = 132;  // an H200's; tokens that fill them take their columns one after the other

// inner[r] = x . down[r] of one token.
template <typename T>
__device__ void take_inner(const AdapterLinearArguments& op, const Elements& x, std::int64_t token, const T* down,
                           float* inner, float* partial) {
  const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
  for (std::int64_t first = 0; first < op.rank; first += TOGETHER) {
    float sums[TOGETHER] = {};
    for (std::int64_t i = threadIdx.x; i < op.width; i += THREADS) {
      const float feature = x[token * op.width + i];
#pragma unroll
      for (int r = 0; r < TOGETHER; r++) {
        if (first + r < op.rank) sums[r] = __fmaf_rn(feature, to_float(down[(first + r) * op.width + i]), sums[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < TOGETHER; r++) {
      sums[r] = lanes_sum(sums[r]);
      if (lane == 0) partial[warp * TOGETHER + r] = sums[r];
    }
    __syncthreads();
    if (threadIdx.x < TOGETHER && first + threadIdx.x < op.rank) {
      float sum = 0;
      for (int other = 0; other < WARPS; other++) sum += partial[other * TOGETHER + threadIdx.x];
      inner[first + threadIdx.x] = sum;
    }
    __syncthreads();
  }
}

template <typename T>
__global__ void __launch_bounds__(THREADS, 4) add_adapters(AdapterLinearArguments op) {
  DYNAMIC_SHARED(float, inner);  // [rank]
  SHARED_ARRAY(float, partial, WARPS * TOGETHER);
  const std::int64_t token = blockIdx.x;
  if (op.route[token] < 0) return;
  const std::int64_t block = op.block_of[op.route[token]];
  const Elements x{op.x, op.x_dtype}, before{op.y, op.y_dtype};
  const MutableElements y{op.y, op.y_dtype};
  take_inner(op, x, token, static_cast<const T*>(op.down) + block * op.rank * op.width, inner, partial);
  const T* up = static_cast<const T*>(op.up) + block * op.rank * op.outputs;
  for (std::int64_t first = std::int64_t{blockIdx.y} * COLUMNS; first < op.outputs;
       first += std::int64_t{gridDim.y} * COLUMNS) {
    for (std::int64_t column = first + threadIdx.x; column < first + COLUMNS && column < op.outputs;
         column += THREADS) {
      float sum = 0;
#pragma unroll 4
      for (std::int64_t r = 0; r < op.rank; r++) {
        sum = __fmaf_rn(inner[r], to_float(up[r * op.outputs + column]), sum);
      }
      const std::int64_t place = token * op.outputs + column;
      y.set(place, before[place] + sum);
    }
  }
}

template <typename T>
cudaError_t start(const AdapterLinearArguments& op, cudaStream_t stream) {
  const std::int64_t parts = op.tokens < PROCESSORS ? ceil_div(op.outputs, COLUMNS) : 1;
  const dim3 grid(static_cast<unsigned>(op.tokens), static_cast<unsigned>(parts));
  return launch(add_adapters<T>, grid, dim3(THREADS), op.rank * sizeof(float), stream, op);
}

}  // namespace

extern "C" cudaError_t corrigenda_adapter_linear(const AdapterLinearArguments& arguments, cudaStream_t stream) {
  if (arguments.tokens == 0 || arguments.outputs == 0 || arguments.rank == 0) return cudaSuccess;
  switch (arguments.down_dtype) {
    case FLOAT32: return start<float>(arguments, stream);
    case BFLOAT16: return start<__nv_bfloat16>(arguments, stream);
    case FLOAT16: return start<__half>(arguments, stream);
    default: return cudaErrorInvalidValue;
  }
}
