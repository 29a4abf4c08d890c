// The gradients of masked_linear: dx = grad memory^T at the set bits, dmemory = (masked x)^T grad.
#include "mask_rows.cuh"
#include "masked_linear.cuh"
#include "masked_linear.h"
#include "tile_product.cuh"

namespace {

// A = grad [tokens, outputs]; B = the listed rows of memory, as columns.
template <typename T>
struct InputGradient {
  static constexpr bool A_ROWS_ADJACENT = false;
  const MaskedLinear& op;
  Elements b;
  bool b_in_packs;
  std::int64_t token;
  const int* routes;
  const int* list;
  int count;

  __device__ __forceinline__ T a(int m, int k) const {
    T value = from_float<T>(0.0f);
    if (routes[m] >= 0 && k < op.outputs) value = element_as<T>(op.y, (token + m) * op.outputs + k);
    return value;
  }
  __device__ __forceinline__ std::int64_t b_row(int n) const { return n < count ? list[n] * op.outputs : -1; }
  __device__ __forceinline__ std::int64_t b_limit() const { return op.outputs; }
};

// A block takes 128 of the rows that its tokens use; the rest of dx has been cleared before.
template <typename Tile>
__global__ void __launch_bounds__(Tile::THREADS, 1) input_gradient(MaskedLinear op, bool b_in_packs) {
  DYNAMIC_SHARED(unsigned char, shared);
  SHARED_ARRAY(int, list, TILE_COLUMNS);
  SHARED_ARRAY(int, routes, Tile::ROWS);
  SHARED_ARRAY(int, distinct, Tile::ROWS);
  SHARED_ARRAY(unsigned, prefix, Tile::THREADS / WARP_SIZE);
  const std::int64_t token = std::int64_t{blockIdx.y} * Tile::ROWS;
  const int entries = gather_routes<Tile::ROWS>(op.route, token, op.tokens, routes, distinct);
  if (entries == 0) return;
  const int first = static_cast<int>(blockIdx.x) * TILE_COLUMNS;
  int listed = 0;
  for (std::int64_t start = 0; start < op.words && listed < first + TILE_COLUMNS; start += Tile::THREADS) {
    const std::int64_t word = start + threadIdx.x;
    const unsigned joined = word < op.words ? joined_word(op.masks, op.words, distinct, entries, word) : 0;
    listed += list_set_bits(joined, static_cast<int>(start) * 32, list, first - listed, TILE_COLUMNS, prefix);
  }
  if (listed <= first) return;
  const int count = min(listed - first, TILE_COLUMNS);
  typename Tile::Sums sums = {};
  const InputGradient<typename Tile::T> problem{op, op.memory, b_in_packs, token, routes, list, count};
  multiply<Tile>(problem, static_cast<int>(op.outputs), shared, sums);
  const auto exact = [&](int m, int n, float sum) {
    sum = 0;
    for (std::int64_t k = 0; routes[m] >= 0 && n < count && k < op.outputs; k++) {
      sum += op.y[(token + m) * op.outputs + k] * op.memory[list[n] * op.outputs + k];
    }
    return sum;
  };
  hand_out<Tile>(sums, shared, exact, [&](int m, int n, float sum) {
    if (n < count && routes[m] >= 0 && op.has(routes[m], list[n])) op.out.set((token + m) * op.width + list[n], sum);
  });
}

// A = x under the masks, [rows of memory, listed tokens]; B = grad of these tokens.
template <typename T>
struct MemoryGradient {
  static constexpr bool A_ROWS_ADJACENT = true;
  const MaskedLinear& op;
  Elements b;
  bool b_in_packs;
  std::int64_t row, column;
  const int* list;
  int count;

  __device__ __forceinline__ T a(int m, int k) const {
    T value = from_float<T>(0.0f);
    if (k < count && row + m < op.width && op.has(op.route[list[k]], row + m)) {
      value = element_as<T>(op.x, list[k] * op.width + row + m);
    }
    return value;
  }
  __device__ __forceinline__ std::int64_t b_row(int k) const { return k < count ? list[k] * op.outputs + column : -1; }
  __device__ __forceinline__ std::int64_t b_limit() const { return op.outputs - column; }
};

template <typename Tile>
__global__ void __launch_bounds__(Tile::THREADS, 1) memory_gradient(MaskedLinear op, bool b_in_packs) {
  constexpr int SEGMENT = Tile::THREADS * 32;  // tokens that are listed at a time
  DYNAMIC_SHARED(unsigned char, shared);
  SHARED_ARRAY(int, list, SEGMENT);
  SHARED_ARRAY(unsigned, prefix, Tile::THREADS / WARP_SIZE);
  const std::int64_t row = std::int64_t{blockIdx.y} * Tile::ROWS, column = std::int64_t{blockIdx.x} * TILE_COLUMNS;
  typename Tile::Sums sums = {};
  for (std::int64_t start = 0; start < op.tokens; start += SEGMENT) {
    unsigned routed = 0;
    for (int i = 0; i < 32; i++) {
      const std::int64_t token = start + std::int64_t{threadIdx.x} * 32 + i;
      if (token < op.tokens && op.route[token] >= 0) routed |= 1u << i;
    }
    const int count = list_set_bits(routed, static_cast<int>(start), list, 0, SEGMENT, prefix);
    const MemoryGradient<typename Tile::T> problem{op, op.y, b_in_packs, row, column, list, count};
    multiply<Tile>(problem, count, shared, sums);
  }
  const auto exact = [&](int m, int n, float sum) {
    sum = 0;
    for (std::int64_t token = 0; row + m < op.width && column + n < op.outputs && token < op.tokens; token++) {
      if (op.route[token] < 0 || !op.has(op.route[token], row + m)) continue;
      sum += op.x[token * op.width + row + m] * op.y[token * op.outputs + column + n];
    }
    return sum;
  };
  hand_out<Tile>(sums, shared, exact, [&](int m, int n, float sum) {
    if (row + m < op.width && column + n < op.outputs) op.out.set((row + m) * op.outputs + column + n, sum);
  });
}

template <typename T, int ROWS>
cudaError_t launch_input_gradient(const MaskedLinear& op, cudaStream_t stream) {
  using Shape = Tile<T, ROWS, 1, true>;
  const dim3 grid(static_cast<unsigned>(ceil_div(op.width, TILE_COLUMNS)),
                  static_cast<unsigned>(ceil_div(op.tokens, ROWS)));
  return launch(input_gradient<Shape>, grid, dim3(Shape::THREADS), Shape::SHARED_BYTES, stream, op,
                in_packs<T>(op.memory, op.outputs));
}

template <typename T>
cudaError_t launch_input_gradient(const MaskedLinear& op, cudaStream_t stream) {
  return op.tokens <= 16 ? launch_input_gradient<T, 16>(op, stream) : launch_input_gradient<T, 64>(op, stream);
}

template <typename T>
cudaError_t launch_memory_gradient(const MaskedLinear& op, cudaStream_t stream) {
  using Shape = Tile<T, 64, 1, false>;
  const dim3 grid(static_cast<unsigned>(ceil_div(op.outputs, TILE_COLUMNS)),
                  static_cast<unsigned>(ceil_div(op.width, Shape::ROWS)));
  return launch(memory_gradient<Shape>, grid, dim3(Shape::THREADS), Shape::SHARED_BYTES, stream, op,
                in_packs<T>(op.y, op.outputs));
}

}  // namespace

extern "C" cudaError_t corrigenda_masked_linear_backward(const MaskedLinearBackwardArguments& arguments,
                                                         cudaStream_t stream) {
  const std::int64_t tokens = arguments.tokens, width = arguments.width, outputs = arguments.outputs;
  MaskedLinear op{{arguments.grad, arguments.grad_dtype},
                  {arguments.x, arguments.x_dtype},
                  {arguments.memory, arguments.memory_dtype},
                  arguments.masks,
                  arguments.route,
                  tokens,
                  width,
                  outputs,
                  ceil_div(width, 32),
                  {}};
  if (arguments.dx != nullptr && tokens > 0 && width > 0) {
    op.out = {arguments.dx, arguments.x_dtype};
    cudaError_t status = cudaMemsetAsync(op.out.data, 0, tokens * width * (op.out.dtype == FLOAT32 ? 4 : 2), stream);
    if (status != cudaSuccess) return status;
    switch (product_dtype(op.y, op.memory)) {
      case BFLOAT16: status = launch_input_gradient<__nv_bfloat16>(op, stream); break;
      case FLOAT16: status = launch_input_gradient<__half>(op, stream); break;
      default: status = launch_input_gradient<float>(op, stream);
    }
    if (status != cudaSuccess) return status;
  }
  if (arguments.dmemory == nullptr || width == 0 || outputs == 0) return cudaSuccess;
  op.out = {arguments.dmemory, arguments.memory_dtype};
  switch (product_dtype(op.x, op.y)) {
    case BFLOAT16: return launch_memory_gradient<__nv_bfloat16>(op, stream);
    case FLOAT16: return launch_memory_gradient<__half>(op, stream);
    default: return launch_memory_gradient<float>(op, stream);
  }
}
