// A tile of a matrix product, C [ROWS, 128] += A [ROWS, inner] B [inner, 128], whose operands a Problem finds wherever
// they lie: gathered, masked, of another format. Three stages in shared memory hide the way there.
//
// A Problem says, with zeros for whatever is not there,
//   a(m, k)            an entry of A, as an Element
//   b_row(k or n)      where its row of B starts in `b`, or -1: rows are k if !B_BY_COLUMN, else n
//   b_limit(), b       up to which place of such a row there is anything, and the array
//   A_ROWS_ADJACENT    neighbours in memory are rows of A, not its columns
#pragma once

#include "elements.cuh"
#include "tensor_core.cuh"

constexpr int TILE_COLUMNS = 128;
constexpr int STAGES = 3;

template <typename Element, int ROWS_, int WARP_ROWS_, bool B_BY_COLUMN_>
struct Tile {
  using T = Element;
  static constexpr int ROWS = ROWS_;
  static constexpr bool B_BY_COLUMN = B_BY_COLUMN_;
  static constexpr int THREADS = 32 * 4 * WARP_ROWS_;  // a warp takes ROWS / WARP_ROWS rows of 32 columns
  static constexpr int DEPTH = 64 / sizeof(T);         // of A and B in one stage
  static constexpr int BLOCKS = ROWS / WARP_ROWS_ / 16;  // of 16 rows, a warp
  static constexpr int PACK = 16 / sizeof(T);
  // Padded so that what a warp reads at once lies in different banks: eight rows of 16 bytes, or of four pairs of
  // float32; along rows of float32, eight columns of four pairs of rows.
  static constexpr int A_STRIDE = DEPTH + 8;
  static constexpr int B_STRIDE = B_BY_COLUMN ? DEPTH + 8 : TILE_COLUMNS + PACK;
  static constexpr int B_ROWS = B_BY_COLUMN ? TILE_COLUMNS : DEPTH;
  static constexpr int B_LENGTH = B_BY_COLUMN ? DEPTH : TILE_COLUMNS;
  static constexpr int A_SIZE = ROWS * A_STRIDE, B_SIZE = B_ROWS * B_STRIDE;
  static constexpr std::size_t STAGE_BYTES = STAGES * (A_SIZE + B_SIZE) * sizeof(T);
  static constexpr std::size_t RESULT_BYTES = ROWS * TILE_COLUMNS * sizeof(float);
  static constexpr std::size_t SHARED_BYTES = STAGE_BYTES > RESULT_BYTES ? STAGE_BYTES : RESULT_BYTES;
  static_assert(ROWS * DEPTH % THREADS == 0 && ROWS % (16 * WARP_ROWS_) == 0);

  using Sums = float[BLOCKS][4][4];  // [16 rows][8 columns][registers of mma.sync]
};

// Multiply what lies in one stage.
template <typename Tile>
__device__ __forceinline__ void multiply_stage(const typename Tile::T* a, const typename Tile::T* b,
                                               typename Tile::Sums& sums) {
  using T = typename Tile::T;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row = warp / 4 * (Tile::BLOCKS * 16), column = warp % 4 * 32;
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int k = 0; k < Tile::DEPTH; k += 16) {
      std::uint32_t b_parts[2][4];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int n = column + 16 * half;
        if constexpr (Tile::B_BY_COLUMN) {
          load_matrices<false>(b_parts[half],
                               b + (n + lane % 8 + lane / 16 * 8) * Tile::B_STRIDE + k + lane / 8 % 2 * 8);
        } else {
          load_matrices<true>(b_parts[half], b + (k + lane % 16) * Tile::B_STRIDE + n + lane / 16 * 8);
        }
      }
#pragma unroll
      for (int i = 0; i < Tile::BLOCKS; i++) {
        std::uint32_t a_part[4];
        load_matrices<false>(a_part, a + (row + 16 * i + lane % 16) * Tile::A_STRIDE + k + lane / 16 * 8);
#pragma unroll
        for (int j = 0; j < 4; j++) {
          multiply_add<T>(sums[i][j], a_part, b_parts[j / 2][j % 2 * 2], b_parts[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
  } else {
    static_assert(Tile::DEPTH == 16);
    const int group = lane / 4, k = lane % 4 * 2;
    std::uint32_t b_high[4][2], b_low[4][2];
#pragma unroll
    for (int j = 0; j < 4; j++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int n = column + 8 * j + group, from = k + 8 * half;
        const float* pair = b + (Tile::B_BY_COLUMN ? n * Tile::B_STRIDE + from : from * Tile::B_STRIDE + n);
        const SplitPair split(pair[0], pair[Tile::B_BY_COLUMN ? 1 : Tile::B_STRIDE]);
        b_high[j][half] = split.high, b_low[j][half] = split.low;
      }
    }
#pragma unroll
    for (int i = 0; i < Tile::BLOCKS; i++) {
      std::uint32_t a_high[4], a_low[4];
#pragma unroll
      for (int r = 0; r < 4; r++) {
        const auto pair =
            load_vector<float, 2>(a + (row + 16 * i + r % 2 * 8 + group) * Tile::A_STRIDE + k + r / 2 * 8);
        const SplitPair split(pair.values[0], pair.values[1]);
        a_high[r] = split.high, a_low[r] = split.low;
      }
#pragma unroll
      for (int j = 0; j < 4; j++) {
        multiply_add<__nv_bfloat16>(sums[i][j], a_low, b_high[j][0], b_high[j][1]);
        multiply_add<__nv_bfloat16>(sums[i][j], a_high, b_low[j][0], b_low[j][1]);
        multiply_add<__nv_bfloat16>(sums[i][j], a_high, b_high[j][0], b_high[j][1]);
      }
    }
  }
}

// The entries of A in one stage, brought from column `k` on. They wait in registers while the stage before is
// multiplied, but where that would spill: float32, of which any format is made, and a transposed A, each of whose
// entries has a mask of its own (255 registers), go to shared memory at once.
template <typename Tile, typename Problem>
struct StageOfA {
  using T = typename Tile::T;
  static constexpr bool WAITS = sizeof(T) == 2 && !Problem::A_ROWS_ADJACENT;
  static constexpr int COUNT = Tile::ROWS * Tile::DEPTH / Tile::THREADS;
  T fetched[WAITS ? COUNT : 1];

  static __device__ __forceinline__ int row_of(int i) {
    const int at = threadIdx.x + i * Tile::THREADS;
    return Problem::A_ROWS_ADJACENT ? at % Tile::ROWS : at / Tile::DEPTH;
  }
  static __device__ __forceinline__ int column_of(int i) {
    const int at = threadIdx.x + i * Tile::THREADS;
    return Problem::A_ROWS_ADJACENT ? at / Tile::ROWS : at % Tile::DEPTH;
  }

  __device__ __forceinline__ void fetch(const Problem& problem, int k, T* a) {
    if constexpr (WAITS) {
#pragma unroll
      for (int i = 0; i < COUNT; i++) fetched[i] = problem.a(row_of(i), k + column_of(i));
    } else {
#pragma unroll 2
      for (int i = 0; i < COUNT; i++) {
        a[row_of(i) * Tile::A_STRIDE + column_of(i)] = problem.a(row_of(i), k + column_of(i));
      }
    }
  }

  __device__ __forceinline__ void store(T* a) const {
    if constexpr (WAITS) {
#pragma unroll
      for (int i = 0; i < COUNT; i++) a[row_of(i) * Tile::A_STRIDE + column_of(i)] = fetched[i];
    }
  }
};

// Start the way of B's stage from `k` on: in one piece from memory to memory where format and alignment allow.
template <typename Tile, typename Problem>
__device__ __forceinline__ void copy_b(const Problem& problem, int k, typename Tile::T* b) {
  using T = typename Tile::T;
  const std::int64_t place = Tile::B_BY_COLUMN ? k : 0;
  if (problem.b_in_packs) {
    constexpr int PACKS = Tile::B_LENGTH / Tile::PACK;
    for (int i = threadIdx.x; i < Tile::B_ROWS * PACKS; i += Tile::THREADS) {
      const int r = i / PACKS, along = i % PACKS * Tile::PACK;
      const std::int64_t row = problem.b_row(Tile::B_BY_COLUMN ? r : k + r);
      const bool there = row >= 0 && place + along < problem.b_limit();
      const T* source = static_cast<const T*>(problem.b.data) + row + place + along;
      copy_async(b + r * Tile::B_STRIDE + along, there ? source : nullptr);
    }
  } else {
#pragma unroll 1
    for (int i = threadIdx.x; i < Tile::B_ROWS * Tile::B_LENGTH; i += Tile::THREADS) {
      const int r = i / Tile::B_LENGTH, along = i % Tile::B_LENGTH;
      const std::int64_t row = problem.b_row(Tile::B_BY_COLUMN ? r : k + r);
      const bool there = row >= 0 && place + along < problem.b_limit();
      b[r * Tile::B_STRIDE + along] = from_float<T>(there ? problem.b[row + place + along] : 0.0f);
    }
  }
}

// Add the products over columns 0 .. inner - 1 of A. `shared` is free again when the block returns.
template <typename Tile, typename Problem>
__device__ __forceinline__ void multiply(const Problem& problem, int inner, unsigned char* shared,
                                         typename Tile::Sums& sums) {
  using T = typename Tile::T;
  T* const a = reinterpret_cast<T*>(shared);
  T* const b = a + STAGES * Tile::A_SIZE;
  const int steps = (inner + Tile::DEPTH - 1) / Tile::DEPTH;
  StageOfA<Tile, Problem> fetched;
#pragma unroll 1
  for (int step = 0; step < STAGES - 1; step++) {
    if (step < steps) {
      copy_b<Tile>(problem, step * Tile::DEPTH, b + step * Tile::B_SIZE);
      fetched.fetch(problem, step * Tile::DEPTH, a + step * Tile::A_SIZE);
      fetched.store(a + step * Tile::A_SIZE);
    }
    commit_copies();
  }
#pragma unroll 1
  for (int step = 0; step < steps; step++) {
    wait_for_copies<STAGES - 2>();
    __syncthreads();
    const int next = step + STAGES - 1;
    if (next < steps) {
      copy_b<Tile>(problem, next * Tile::DEPTH, b + next % STAGES * Tile::B_SIZE);
      fetched.fetch(problem, next * Tile::DEPTH, a + next % STAGES * Tile::A_SIZE);
    }
    commit_copies();
    multiply_stage<Tile>(a + step % STAGES * Tile::A_SIZE, b + step % STAGES * Tile::B_SIZE, sums);
    if (next < steps) fetched.store(a + next % STAGES * Tile::A_SIZE);
  }
  wait_for_copies<0>();
  __syncthreads();
}

// The sums as [ROWS, TILE_COLUMNS] in shared memory, for all threads.
template <typename Tile>
__device__ __forceinline__ float* lay_out(const typename Tile::Sums& sums, unsigned char* shared) {
  float* const result = reinterpret_cast<float*>(shared);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row = warp / 4 * (Tile::BLOCKS * 16) + lane / 4, column = warp % 4 * 32 + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < Tile::BLOCKS; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
#pragma unroll
      for (int r = 0; r < 4; r++) {
        result[(row + 16 * i + r / 2 * 8) * TILE_COLUMNS + column + 8 * j + r % 2] = sums[i][j][r];
      }
    }
  }
  __syncthreads();
  return result;
}

__device__ __forceinline__ bool is_finite(float value) { return fabsf(value) <= 3.4028235e38f; }

// Hand every sum to `take(m, n, sum)`, neighbouring threads neighbouring columns.
//
// A product with zero is not nothing where the other factor is infinite or not a number; so a sum that is not finite
// may hold a factor that its own mask leaves out, and `exact(m, n, sum)` makes it anew, factor by factor.
template <typename Tile, typename Exact, typename Take>
__device__ __forceinline__ void hand_out(const typename Tile::Sums& sums, unsigned char* shared, Exact exact,
                                         Take take) {
  const float* const result = lay_out<Tile>(sums, shared);
#pragma unroll 1
  for (int i = threadIdx.x; i < Tile::ROWS * TILE_COLUMNS; i += Tile::THREADS) {
    const int m = i / TILE_COLUMNS, n = i % TILE_COLUMNS;
    const float sum = result[i];
    take(m, n, is_finite(sum) ? sum : exact(m, n, sum));
  }
}
