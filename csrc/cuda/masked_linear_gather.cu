// masked_linear for a few tokens: memory's rows are read once, in the order of the bits, and nothing else is.
//
// A block takes some words of the masks and a tile of columns: it lists the rows that any of its tokens uses, and its
// warps take these in turns, 16 bytes a thread, all columns of the tile at once. At 14336 x 4096 about 500 blocks share
// the work; their sums are added by a second kernel, in the order of the splits, so that results are reproducible.
#include "mask_rows.cuh"
#include "masked_linear.cuh"

namespace {

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / WARP_SIZE;
constexpr int ROWS = GATHERED_WORDS * 32;

// T is memory's format; a thread has COUNT neighbouring columns.
template <typename T, int COUNT, int TOKENS>
__global__ void __launch_bounds__(THREADS) gather_rows(MaskedLinear op, Splits splits) {
  constexpr int COLUMNS = WARP_SIZE * COUNT;
  constexpr int AHEAD = TOKENS > 4 ? 4 : 8;  // rows in flight a warp; more would spill
  DYNAMIC_SHARED(float, shared);             // x [TOKENS, ROWS], later the warps' sums [WARPS, TOKENS, COLUMNS]
  SHARED_ARRAY(int, list, ROWS);
  SHARED_ARRAY(unsigned char, users, ROWS);  // bit t: token t uses the row
  SHARED_ARRAY(int, routes, TOKENS);
  SHARED_ARRAY(int, distinct, TOKENS);
  SHARED_ARRAY(unsigned, prefix, WARPS);
  const int thread = threadIdx.x, lane = thread % WARP_SIZE, warp = thread / WARP_SIZE;
  const int entries = gather_routes<TOKENS>(op.route, 0, op.tokens, routes, distinct);
  if (entries == 0) return;
  const std::int64_t word = std::int64_t{blockIdx.y} * splits.words + thread;
  const bool has_word = thread < splits.words && word < op.words;
  const unsigned joined = has_word ? joined_word(op.masks, op.words, distinct, entries, word) : 0;
  const int first = static_cast<int>(blockIdx.y) * splits.words * 32;
  const int count = list_set_bits(joined, first, list, 0, ROWS, prefix);
  for (int i = thread; i < count; i += THREADS) {
    const int row = list[i];
    unsigned used = 0;
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
      const bool uses = routes[t] >= 0 && op.has(routes[t], row);
      used |= uses ? 1u << t : 0u;
      shared[t * ROWS + i] = uses ? op.x[t * op.width + row] : 0.0f;
    }
    users[i] = static_cast<unsigned char>(used);
  }
  __syncthreads();

  const std::int64_t column = std::int64_t{blockIdx.x} * COLUMNS + lane * COUNT;
  const T* memory = static_cast<const T*>(op.memory.data) + column;
  const bool inside = column < op.outputs;
  float sums[TOKENS][COUNT] = {};
  for (int start = warp; start < count; start += AHEAD * WARPS) {
    Vector<T, COUNT> rows[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      const int at = start + i * WARPS;
      if (inside && at < count) rows[i] = load_vector<T, COUNT>(memory + list[at] * op.outputs);
    }
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      const int at = start + i * WARPS;
      if (at >= count) break;
#pragma unroll
      for (int t = 0; t < TOKENS; t++) {
        // Not multiplied by zero instead: the row may hold a NaN that is not this token's.
        if (TOKENS > 1 && !(users[at] >> t & 1)) continue;
        const float weight = shared[t * ROWS + at];
#pragma unroll
        for (int c = 0; c < COUNT; c++) sums[t][c] = __fmaf_rn(weight, to_float(rows[i].values[c]), sums[t][c]);
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int t = 0; t < TOKENS; t++) {
#pragma unroll
    for (int c = 0; c < COUNT; c++) shared[(warp * TOKENS + t) * COLUMNS + lane * COUNT + c] = sums[t][c];
  }
  __syncthreads();
  for (int i = thread; i < TOKENS * COLUMNS; i += THREADS) {
    const std::int64_t t = i / COLUMNS, c = std::int64_t{blockIdx.x} * COLUMNS + i % COLUMNS;
    if (t >= op.tokens || c >= op.outputs || routes[t] < 0) continue;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += shared[w * TOKENS * COLUMNS + i];
    splits.partial[(blockIdx.y * op.tokens + t) * op.outputs + c] = sum;
  }
}

template <typename T, int COUNT, int TOKENS>
cudaError_t launch_for(const MaskedLinear& op, const Splits& splits, cudaStream_t stream) {
  constexpr int COLUMNS = WARP_SIZE * COUNT;
  constexpr int FLOATS = TOKENS * (ROWS > WARPS * COLUMNS ? ROWS : WARPS * COLUMNS);
  const dim3 grid(static_cast<unsigned>(ceil_div(op.outputs, COLUMNS)), splits.number);
  return launch(gather_rows<T, COUNT, TOKENS>, grid, dim3(THREADS), FLOATS * sizeof(float), stream, op, splits);
}

template <typename T, int COUNT>
cudaError_t launch_by_tokens(const MaskedLinear& op, const Splits& splits, cudaStream_t stream) {
  if (op.tokens == 1) return launch_for<T, COUNT, 1>(op, splits, stream);
  if (op.tokens == 2) return launch_for<T, COUNT, 2>(op, splits, stream);
  if (op.tokens <= 4) return launch_for<T, COUNT, 4>(op, splits, stream);
  return launch_for<T, COUNT, GATHERED_TOKENS>(op, splits, stream);
}

template <typename T>
cudaError_t launch_aligned(const MaskedLinear& op, const Splits& splits, cudaStream_t stream) {
  return in_packs<T>(op.memory, op.outputs) ? launch_by_tokens<T, VECTOR_WIDTH<T>>(op, splits, stream)
                                            : launch_by_tokens<T, 1>(op, splits, stream);
}

}  // namespace

cudaError_t launch_gather(const MaskedLinear& op, const Splits& splits, cudaStream_t stream) {
  switch (op.memory.dtype) {
    case FLOAT32: return launch_aligned<float>(op, splits, stream);
    case BFLOAT16: return launch_aligned<__nv_bfloat16>(op, splits, stream);
    case FLOAT16: return launch_aligned<__half>(op, splits, stream);
    default: return cudaErrorInvalidValue;
  }
}
