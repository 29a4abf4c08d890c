// masked_sgd: one pass over delta, in which each block makes its tile of x^T gradient and steps that tile.
//
// 400 tokens at 14336 x 4096 are 47 GFLOP beside 0.47 GB to read and write (0.11 ms at 4.3 TB/s): float32 multiply-adds
// take 0.7 ms at their peak. So the product runs on the tensor cores, float32 as two bfloat16 (SplitPair). A first
// launch parts the two factors once, 19 MB in all, and pads them with zeros: the tiles then need no conversion and no
// bounds, while delta is asked for before they start.
#include "masked_sgd.h"

#include <algorithm>

#include "tile_product.cuh"

namespace {

using Half = __nv_bfloat16;
using Shape = Tile<Half, 128, 2, false>;  // its threads and where they keep their sums

constexpr int ROWS = Shape::ROWS;  // of delta, a block
constexpr int DEPTH = 32;          // tokens of one stage
constexpr int STRIDE = 128 + 8;    // eight rows of 16 bytes lie in different banks
constexpr int PART = DEPTH * STRIDE;
constexpr int PACK = 8;  // of Half, 16 bytes
constexpr int SPLIT_THREADS = 256;
static_assert(ROWS == TILE_COLUMNS);

// A factor [tokens, columns] in its own format, and parted: `parts` arrays [padded tokens, padded columns].
struct Factor {
  Elements source;
  std::int64_t tokens, columns;
  Half* split;

  // bfloat16 is its own first part, and has no second.
  __host__ __device__ int parts() const { return source.dtype == BFLOAT16 ? 1 : 2; }
  __host__ __device__ std::int64_t stride() const { return ceil_div(columns, ROWS) * ROWS; }
  __host__ __device__ std::int64_t part_size() const { return ceil_div(tokens, DEPTH) * DEPTH * stride(); }
};

struct MaskedSgd {
  float* delta;
  Factor x, gradient;
  const unsigned* masks;
  Elements base;
  float learning_rate, decay, limit;
  bool decay_masked;
  std::int64_t words;

  __device__ __forceinline__ float stepped(float before, float sum, float frozen, bool free) const {
    float step = free ? learning_rate * sum : 0.0f;
    if (decay != 0 && (free || !decay_masked)) step += decay * (frozen + before);
    const float after = before - step;
    return after > limit ? limit : after < -limit ? -limit : after;  // NaN stays
  }

  // An entry of x^T gradient factor by factor.
  __device__ __forceinline__ float exact(std::int64_t i, std::int64_t j) const {
    float sum = 0;
    for (std::int64_t t = 0; t < x.tokens; t++) {
      sum += x.source[t * x.columns + i] * gradient.source[t * gradient.columns + j];
    }
    return sum;
  }
};

__device__ __forceinline__ void split_pack(const Factor& factor, std::int64_t pack) {
  const std::int64_t row = pack * PACK / factor.stride(), column = pack * PACK % factor.stride();
  float values[PACK] = {};
  if (row < factor.tokens && column < factor.columns) {
    const std::int64_t place = row * factor.columns + column;
    if (factor.columns % PACK == 0 && is_aligned(factor.source.data)) {
      load_floats(factor.source, place, true, values);
    } else {
#pragma unroll
      for (int i = 0; i < PACK; i++) {
        if (column + i < factor.columns) values[i] = factor.source[place + i];
      }
    }
  }
  Vector<std::uint32_t, PACK / 2> high, low;
#pragma unroll
  for (int i = 0; i < PACK / 2; i++) {
    const SplitPair pair(values[2 * i], values[2 * i + 1]);
    high.values[i] = pair.high, low.values[i] = pair.low;
  }
  using Packed = Vector<std::uint32_t, PACK / 2>;
  *reinterpret_cast<Packed*>(factor.split + pack * PACK) = high;
  if (factor.parts() == 2) *reinterpret_cast<Packed*>(factor.split + factor.part_size() + pack * PACK) = low;
}

// grid.y 0 parts x, 1 the gradient.
__global__ void __launch_bounds__(SPLIT_THREADS) split_factors(Factor x, Factor gradient) {
  const Factor factor = blockIdx.y == 0 ? x : gradient;
  const std::int64_t pack = std::int64_t{blockIdx.x} * SPLIT_THREADS + threadIdx.x;
  if (pack * PACK < factor.part_size()) split_pack(factor, pack);
}

template <int PARTS>
__device__ __forceinline__ void copy_stage(const Factor& factor, int step, std::int64_t column, Half* stage) {
  constexpr int PACKS = ROWS / PACK;
#pragma unroll
  for (int part = 0; part < PARTS; part++) {
    const std::int64_t top = std::int64_t{step} * DEPTH * factor.stride();
    const Half* source = factor.split + part * factor.part_size() + top + column;
#pragma unroll
    for (int i = threadIdx.x; i < DEPTH * PACKS; i += Shape::THREADS) {
      const int row = i / PACKS, along = i % PACKS * PACK;
      copy_async(stage + part * PART + row * STRIDE + along, source + row * factor.stride() + along);
    }
  }
}

// Both factors lie token by token, so both go through the transposing load.
template <int X_PARTS, int G_PARTS>
__device__ __forceinline__ void multiply_parts(const Half* x, const Half* gradient, Shape::Sums& sums) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row = warp / 4 * (Shape::BLOCKS * 16), column = warp % 4 * 32;
#pragma unroll
  for (int k = 0; k < DEPTH; k += 16) {
    std::uint32_t b[G_PARTS][2][4];
#pragma unroll
    for (int part = 0; part < G_PARTS; part++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        load_matrices<true>(b[part][half],
                            gradient + part * PART + (k + lane % 16) * STRIDE + column + 16 * half + lane / 16 * 8);
      }
    }
#pragma unroll
    for (int i = 0; i < Shape::BLOCKS; i++) {
      std::uint32_t a[X_PARTS][4];
#pragma unroll
      for (int part = 0; part < X_PARTS; part++) {
        load_matrices<true>(
            a[part], x + part * PART + (k + lane % 8 + lane / 16 * 8) * STRIDE + row + 16 * i + lane / 8 % 2 * 8);
      }
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const auto add = [&](int x_part, int g_part) {
          const std::uint32_t* pair = b[g_part][j / 2] + j % 2 * 2;
          multiply_add<Half>(sums[i][j], a[x_part], pair[0], pair[1]);
        };
        if constexpr (X_PARTS == 2) add(1, 0);
        if constexpr (G_PARTS == 2) add(0, 1);
        add(0, 0);
      }
    }
  }
}

constexpr int COUNT = 4;  // neighbours of a row that a thread steps at once
constexpr int AHEAD = 4;  // and such packs that it has on their way: 32 KB a processor with two blocks

// Step the tile of delta at (row, column) by the sums. `packed`: rows are whole packs, each aligned.
__device__ __forceinline__ void step_tile(const MaskedSgd& op, std::int64_t row, std::int64_t column,
                                          float* sums, bool packed) {
  const std::int64_t width = op.x.columns, outputs = op.gradient.columns;
  const bool holds = op.decay != 0 && op.base.data != nullptr;
  // Parting an infinite factor left what is not a number.
#pragma unroll 1
  for (int start = threadIdx.x * COUNT; start < ROWS * TILE_COLUMNS; start += Shape::THREADS * COUNT) {
    const auto sum = load_vector<float, COUNT>(sums + start);
    bool finite = true;
#pragma unroll
    for (int c = 0; c < COUNT; c++) finite &= is_finite(sum.values[c]);
    for (int c = 0; !finite && c < COUNT; c++) {
      const std::int64_t i = row + start / TILE_COLUMNS, j = column + start % TILE_COLUMNS + c;
      if (i < width && j < outputs) sums[start + c] = op.exact(i, j);
    }
  }
#pragma unroll 1
  for (int start = threadIdx.x * COUNT; start < ROWS * TILE_COLUMNS; start += AHEAD * Shape::THREADS * COUNT) {
    float before[AHEAD][COUNT] = {}, frozen[AHEAD][COUNT] = {};
    unsigned free[AHEAD];
#pragma unroll
    for (int p = 0; p < AHEAD; p++) {
      const int at = start + p * Shape::THREADS * COUNT;
      const std::int64_t i = row + at / TILE_COLUMNS, j = column + at % TILE_COLUMNS, place = i * outputs + j;
      if (i >= width || j >= outputs) continue;
      free[p] = op.masks[i * op.words + j / 32] >> (j % 32);
      if (packed) {
        load_floats(Elements{op.delta, FLOAT32}, place, true, before[p]);
        if (holds) load_floats(op.base, place, true, frozen[p]);
      } else {
#pragma unroll
        for (int c = 0; c < COUNT; c++) {
          if (j + c >= outputs) continue;
          before[p][c] = op.delta[place + c];
          if (holds) frozen[p][c] = op.base[place + c];
        }
      }
    }
#pragma unroll
    for (int p = 0; p < AHEAD; p++) {
      const int at = start + p * Shape::THREADS * COUNT;
      const std::int64_t i = row + at / TILE_COLUMNS, j = column + at % TILE_COLUMNS, place = i * outputs + j;
      if (i >= width || j >= outputs) continue;
      const auto sum = load_vector<float, COUNT>(sums + at);
      float after[COUNT];
#pragma unroll
      for (int c = 0; c < COUNT; c++) {
        after[c] = op.stepped(before[p][c], sum.values[c], frozen[p][c], free[p] >> c & 1);
      }
      if (packed) {
        store_floats(MutableElements{op.delta, FLOAT32}, place, after);
      } else {
#pragma unroll
        for (int c = 0; c < COUNT; c++) {
          if (j + c < outputs) op.delta[place + c] = after[c];
        }
      }
    }
  }
}

template <int X_PARTS, int G_PARTS>
constexpr std::size_t STAGE_BYTES = STAGES * (X_PARTS + G_PARTS) * PART * sizeof(Half);
template <int X_PARTS, int G_PARTS>
constexpr std::size_t SHARED_BYTES = std::max(STAGE_BYTES<X_PARTS, G_PARTS>, Shape::RESULT_BYTES);

template <int X_PARTS, int G_PARTS>
__global__ void __launch_bounds__(Shape::THREADS, 2) step(MaskedSgd op, bool packed) {
  DYNAMIC_SHARED(unsigned char, shared);
  constexpr int STAGE = (X_PARTS + G_PARTS) * PART;
  const std::int64_t row = std::int64_t{blockIdx.y} * ROWS, column = std::int64_t{blockIdx.x} * TILE_COLUMNS;
  for (int line = threadIdx.x; line < ROWS * 4; line += Shape::THREADS) {  // of 128 bytes
    const std::int64_t i = row + line / 4, j = column + line % 4 * 32;
    if (i < op.x.columns && j < op.gradient.columns) prefetch_to_l2(op.delta + i * op.gradient.columns + j);
  }
  wait_for_previous_grid();
  Half* const stages = reinterpret_cast<Half*>(shared);
  const auto copy = [&](int step) {
    Half* stage = stages + step % STAGES * STAGE;
    copy_stage<X_PARTS>(op.x, step, row, stage);
    copy_stage<G_PARTS>(op.gradient, step, column, stage + X_PARTS * PART);
  };
  const int steps = static_cast<int>(ceil_div(op.x.tokens, DEPTH));
  Shape::Sums sums = {};
#pragma unroll 1
  for (int step = 0; step < STAGES - 1; step++) {
    if (step < steps) copy(step);
    commit_copies();
  }
#pragma unroll 1
  for (int step = 0; step < steps; step++) {
    wait_for_copies<STAGES - 2>();
    __syncthreads();
    if (step + STAGES - 1 < steps) copy(step + STAGES - 1);
    commit_copies();
    const Half* stage = stages + step % STAGES * STAGE;
    multiply_parts<X_PARTS, G_PARTS>(stage, stage + X_PARTS * PART, sums);
  }
  wait_for_copies<0>();
  __syncthreads();
  step_tile(op, row, column, lay_out<Shape>(sums, shared), packed);
}

template <int X_PARTS, int G_PARTS>
cudaError_t launch_step(const MaskedSgd& op, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(op.gradient.columns, TILE_COLUMNS)),
                  static_cast<unsigned>(ceil_div(op.x.columns, ROWS)));
  const bool packed = op.gradient.columns % COUNT == 0 && is_aligned(op.delta) &&
                      (op.base.data == nullptr || is_aligned(op.base.data));
  return launch_early(step<X_PARTS, G_PARTS>, grid, dim3(Shape::THREADS), SHARED_BYTES<X_PARTS, G_PARTS>, stream, op,
                      packed);
}

// The factors, before their parts have a place.
Factor features_of(const MaskedSgdArguments& arguments) {
  return {{arguments.x, arguments.x_dtype}, arguments.tokens, arguments.width, nullptr};
}

Factor upstream_of(const MaskedSgdArguments& arguments) {
  return {{arguments.gradient, arguments.gradient_dtype}, arguments.tokens, arguments.outputs, nullptr};
}

}  // namespace

extern "C" std::size_t corrigenda_masked_sgd_scratch_bytes(const MaskedSgdArguments& arguments) {
  const Factor x = features_of(arguments), gradient = upstream_of(arguments);
  return (x.parts() * x.part_size() + gradient.parts() * gradient.part_size()) * sizeof(Half);
}

extern "C" cudaError_t corrigenda_masked_sgd(const MaskedSgdArguments& arguments, cudaStream_t stream) {
  if (arguments.width == 0 || arguments.outputs == 0) return cudaSuccess;
  Factor features = features_of(arguments), upstream = upstream_of(arguments);
  features.split = static_cast<Half*>(arguments.scratch);
  upstream.split = features.split + features.parts() * features.part_size();
  const MaskedSgd op{arguments.delta,
                     features,
                     upstream,
                     arguments.masks,
                     {arguments.base, arguments.base_dtype},
                     arguments.learning_rate,
                     arguments.decay,
                     arguments.limit,
                     arguments.decay_masked,
                     ceil_div(arguments.outputs, 32)};
  if (arguments.tokens > 0) {
    const std::int64_t most = std::max(features.part_size(), upstream.part_size());
    const dim3 grid(static_cast<unsigned>(ceil_div(most, SPLIT_THREADS * PACK)), 2);
    const cudaError_t status = launch(split_factors, grid, dim3(SPLIT_THREADS), 0, stream, features, upstream);
    if (status != cudaSuccess) return status;
  }
  if (features.parts() == 1) {
    return upstream.parts() == 1 ? launch_step<1, 1>(op, stream) : launch_step<1, 2>(op, stream);
  }
  return upstream.parts() == 1 ? launch_step<2, 1>(op, stream) : launch_step<2, 2>(op, stream);
}
