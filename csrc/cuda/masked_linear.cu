// masked_linear for many tokens, and the choice between this and the gather for a few.
//
// A block multiplies the masked x of neighbouring tokens by a tile of memory's columns, over the rows that any of these
// tokens uses: tokens of one sequence share a mask, so that prefill costs what the mask's set bits cost. Few tokens of
// many masks use nearly all rows; the tile then reads memory once for all of them (117 MB at 14336 x 4096, 27 us).
#include "masked_linear.h"

#include "mask_rows.cuh"
#include "masked_linear.cuh"
#include "tile_product.cuh"

namespace {

constexpr int SEGMENT_WORDS = 128;  // rows are listed so many mask words at a time, 16 KB of list
constexpr int WANTED_BLOCKS = 264;  // two for each of an H200's processors

// A = x under the masks, [tokens, listed rows]; B = the listed rows of memory.
template <typename T>
struct Forward {
  static constexpr bool A_ROWS_ADJACENT = false;
  const MaskedLinear& op;
  Elements b;
  bool b_in_packs;
  bool one_mask;
  std::int64_t token, column;
  const int* routes;
  const int* list;
  int count;

  __device__ __forceinline__ T a(int m, int k) const {
    const int row = k < count ? list[k] : 0, entry = routes[m];
    T value = from_float<T>(0.0f);
    if (k < count && entry >= 0 && (one_mask || op.has(entry, row))) {
      value = element_as<T>(op.x, (token + m) * op.width + row);
    }
    return value;
  }
  __device__ __forceinline__ std::int64_t b_row(int k) const { return k < count ? list[k] * op.outputs + column : -1; }
  __device__ __forceinline__ std::int64_t b_limit() const { return op.outputs - column; }
};

template <typename Tile>
__global__ void __launch_bounds__(Tile::THREADS, 1) multiply_masked(MaskedLinear op, Splits splits, bool b_in_packs) {
  DYNAMIC_SHARED(unsigned char, shared);
  SHARED_ARRAY(int, list, SEGMENT_WORDS * 32);
  SHARED_ARRAY(int, routes, Tile::ROWS);
  SHARED_ARRAY(int, distinct, Tile::ROWS);
  SHARED_ARRAY(unsigned, prefix, Tile::THREADS / WARP_SIZE);
  const int thread = threadIdx.x;
  const std::int64_t token = std::int64_t{blockIdx.y} * Tile::ROWS, column = std::int64_t{blockIdx.x} * TILE_COLUMNS;
  const int entries = gather_routes<Tile::ROWS>(op.route, token, op.tokens, routes, distinct);
  const bool whole = splits.number == 1;
  if (entries == 0 && (!whole || op.out.data == op.y.data)) return;

  typename Tile::Sums sums = {};
  const std::int64_t begin = std::int64_t{blockIdx.z} * splits.words;
  const std::int64_t end = min(begin + splits.words, op.words);
  for (std::int64_t start = begin; entries > 0 && start < end; start += SEGMENT_WORDS) {
    const bool has_word = thread < SEGMENT_WORDS && start + thread < end;
    const unsigned joined = has_word ? joined_word(op.masks, op.words, distinct, entries, start + thread) : 0;
    const int count = list_set_bits(joined, static_cast<int>(start) * 32, list, 0, SEGMENT_WORDS * 32, prefix);
    const Forward<typename Tile::T> problem{op,     op.memory, b_in_packs, entries == 1, token,
                                            column, routes,    list,       count};
    multiply<Tile>(problem, count, shared, sums);
  }
  const auto exact = [&](int m, int n, float sum) {
    sum = 0;
    for (std::int64_t word = begin; routes[m] >= 0 && column + n < op.outputs && word < end; word++) {
      for (unsigned bits = op.masks[routes[m] * op.words + word]; bits != 0; bits &= bits - 1) {
        const std::int64_t row = word * 32 + __ffs(bits) - 1;
        sum += op.x[(token + m) * op.width + row] * op.memory[row * op.outputs + column + n];
      }
    }
    return sum;
  };
  hand_out<Tile>(sums, shared, exact, [&](int m, int n, float sum) {
    if (token + m >= op.tokens || column + n >= op.outputs) return;
    const std::int64_t place = (token + m) * op.outputs + column + n;
    if (routes[m] < 0) {
      if (whole) op.keep(place);
    } else if (whole) {
      op.out.set(place, op.y[place] + sum);
    } else {
      splits.partial[blockIdx.z * op.tokens * op.outputs + place] = sum;
    }
  });
}

constexpr int ADDING_THREADS = 256;

__global__ void __launch_bounds__(ADDING_THREADS) add_partial(MaskedLinear op, Splits splits) {
  const std::int64_t token = blockIdx.y, column = std::int64_t{blockIdx.x} * ADDING_THREADS + threadIdx.x;
  const std::int64_t place = token * op.outputs + column;
  wait_for_previous_grid();  // every block, or this grid could end, and the next one start, before that one has
  if (column >= op.outputs) return;
  if (op.route[token] < 0) {
    op.keep(place);
    return;
  }
  float sum = 0;
#pragma unroll 8
  for (int split = 0; split < splits.number; split++) sum += splits.partial[split * op.tokens * op.outputs + place];
  op.out.set(place, op.y[place] + sum);
}

template <typename Tile>
cudaError_t launch_tile(const MaskedLinear& op, const Splits& splits, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(op.outputs, TILE_COLUMNS)),
                  static_cast<unsigned>(ceil_div(op.tokens, Tile::ROWS)), splits.number);
  return launch(multiply_masked<Tile>, grid, dim3(Tile::THREADS), Tile::SHARED_BYTES, stream, op, splits,
                in_packs<typename Tile::T>(op.memory, op.outputs));
}

int tile_rows(std::int64_t tokens) { return tokens <= 16 ? 16 : tokens <= 64 ? 64 : 128; }

template <typename T>
cudaError_t launch_tile_for(const MaskedLinear& op, const Splits& splits, cudaStream_t stream) {
  switch (tile_rows(op.tokens)) {
    case 16: return launch_tile<Tile<T, 16, 1, false>>(op, splits, stream);
    case 64: return launch_tile<Tile<T, 64, 1, false>>(op, splits, stream);
    default: return launch_tile<Tile<T, 128, 2, false>>(op, splits, stream);
  }
}

Splits plan(std::int64_t tokens, std::int64_t width, std::int64_t outputs) {
  const std::int64_t words = ceil_div(width, 32) > 0 ? ceil_div(width, 32) : 1;
  std::int64_t blocks = 0, wanted = WANTED_BLOCKS, most = words;
  if (tokens <= GATHERED_TOKENS) {
    // Smaller blocks, four on a processor: what hides the way to memory is their number.
    blocks = ceil_div(outputs, GATHERED_COLUMNS);
    wanted *= 2;
    most = GATHERED_WORDS;
  } else {
    blocks = ceil_div(outputs, TILE_COLUMNS) * ceil_div(tokens, tile_rows(tokens));
  }
  const std::int64_t splits = blocks < wanted ? wanted / (blocks > 0 ? blocks : 1) : 1;
  std::int64_t per_split = ceil_div(words, splits);
  // A tile of fewer than 8 words has too few steps to fill its stages.
  if (tokens > GATHERED_TOKENS && per_split < 8) per_split = 8;
  if (per_split > most) per_split = most;
  return {static_cast<int>(ceil_div(words, per_split)), static_cast<int>(per_split), nullptr};
}

}  // namespace

extern "C" std::size_t corrigenda_masked_linear_scratch_bytes(const MaskedLinearArguments& arguments) {
  const std::int64_t tokens = arguments.tokens, outputs = arguments.outputs;
  const Splits splits = plan(tokens, arguments.width, outputs);
  const bool whole = tokens > GATHERED_TOKENS && splits.number == 1;
  return whole ? 0 : splits.number * tokens * outputs * sizeof(float);
}

extern "C" cudaError_t corrigenda_masked_linear(const MaskedLinearArguments& arguments, cudaStream_t stream) {
  const std::int64_t tokens = arguments.tokens, width = arguments.width, outputs = arguments.outputs;
  if (tokens == 0 || outputs == 0) return cudaSuccess;
  const MaskedLinear op{{arguments.y, arguments.y_dtype},
                        {arguments.x, arguments.x_dtype},
                        {arguments.memory, arguments.memory_dtype},
                        arguments.masks,
                        arguments.route,
                        tokens,
                        width,
                        outputs,
                        ceil_div(width, 32),
                        {arguments.out, arguments.y_dtype}};
  Splits splits = plan(tokens, width, outputs);
  splits.partial = static_cast<float*>(arguments.scratch);
  cudaError_t status = cudaSuccess;
  if (tokens <= GATHERED_TOKENS) {
    status = launch_gather(op, splits, stream);
  } else {
    switch (product_dtype(op.x, op.memory)) {
      case BFLOAT16: status = launch_tile_for<__nv_bfloat16>(op, splits, stream); break;
      case FLOAT16: status = launch_tile_for<__half>(op, splits, stream); break;
      default: status = launch_tile_for<float>(op, splits, stream);
    }
    if (splits.number == 1) return status;
  }
  if (status != cudaSuccess) return status;
  const dim3 grid(static_cast<unsigned>(ceil_div(outputs, ADDING_THREADS)), static_cast<unsigned>(tokens));
  return launch_early(add_partial, grid, dim3(ADDING_THREADS), 0, stream, op, splits);
}
