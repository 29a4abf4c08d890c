// associative_read: a token's softmax over its edit's rows, and the mean of their values under it.
//
// Bound by latency at 64 tokens of 8 rows (4.5 MB, 1 us at 4.3 TB/s): so it is one launch, in which each block makes
// its token's scores for itself and has asked for its first rows of values before it starts. Wide keys, or many rows,
// would be read too often so: their scores come from a launch of their own.
#include "associative_read.h"

#include "associative_read.cuh"

namespace {

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / WARP_SIZE;
constexpr int COUNT = 8;  // columns of a thread
constexpr int COLUMNS = THREADS * COUNT;
constexpr int AHEAD = 8;       // rows of values in flight a thread: those of an edit, mostly
constexpr int SEGMENT = 1024;  // shares held in shared memory at a time
constexpr int NARROW = 1024;   // keys up to so wide are scored by every block: 16 KB for 8 rows in bfloat16

// One warp per row: beta keys_r . u_t, into scores [tokens, max_pages * 8].
__global__ void __launch_bounds__(THREADS, 1) score_rows(AssociativeRead op, float* scores, bool packed) {
  const std::int64_t token = blockIdx.x, room = op.max_pages * PAGE_ROWS;
  const Span span = rows_read(op, token);
  if (span.begin == 0) return;
  const int r = span.begin + static_cast<int>(blockIdx.y) * WARPS + static_cast<int>(threadIdx.x) / WARP_SIZE;
  if (r >= span.end) return;
  const float result = score(op, project(op, token, op.slot(span.edit, r), packed));
  if (threadIdx.x % WARP_SIZE == 0) scores[token * room + r] = result;
}

template <typename T>
struct Values {
  Vector<T, COUNT> rows[AHEAD];
  float scale[AHEAD];
};

// Ask for rows `begin` on; `whole` says that all COUNT columns are there and aligned.
template <typename T>
__device__ __forceinline__ void load_values(const AssociativeRead& op, const Span& span, int begin, std::int64_t column,
                                            bool whole, Values<T>& values) {
  const T* bank = static_cast<const T*>(op.values.data);
#pragma unroll
  for (int i = 0; i < AHEAD; i++) {
    if (begin + i >= span.end) continue;
    const std::int64_t slot = op.slot(span.edit, begin + i);
    if (op.scales != nullptr) values.scale[i] = op.scales[slot];
    const T* source = bank + slot * op.outputs + column;
    if (whole) {
      values.rows[i] = load_vector<T, COUNT>(source);
    } else {
#pragma unroll
      for (int c = 0; c < COUNT; c++) {
        if (column + c < op.outputs) values.rows[i].values[c] = source[c];
      }
    }
  }
}

// `scores` is null where this kernel makes them.
template <typename T>
__global__ void __launch_bounds__(THREADS, 1) read_values(AssociativeRead op, const float* scores, bool keys_packed,
                                                       bool values_packed, bool y_packed) {
  SHARED_ARRAY(float, shares, SEGMENT);
  SHARED_ARRAY(float, partial, WARPS);
  if (scores != nullptr) wait_for_previous_grid();
  const std::int64_t token = blockIdx.x;
  const Span span = rows_read(op, token);
  const std::int64_t column = std::int64_t{blockIdx.y} * COLUMNS + threadIdx.x * COUNT;
  if (span.begin >= span.end) {
    if (op.out.data != op.y.data) {
      for (int c = 0; c < COUNT && column + c < op.outputs; c++) {
        op.out.copy(token * op.outputs + column + c, op.y.data);
      }
    }
    return;
  }
  const bool whole = values_packed && column < op.outputs;
  Values<T> values;
  load_values(op, span, span.begin, column, whole, values);
  float sums[COUNT] = {}, before[COUNT] = {};
  if (y_packed && column < op.outputs) load_floats(op.y, token * op.outputs + column, true, before);

  const int count = span.end - span.begin;
  const float* from = shares;
  Softmax softmax{0, 1};
  if (span.begin > 0) {
    if (scores == nullptr) {
      for (int i = threadIdx.x / WARP_SIZE; i < count; i += WARPS) {
        const float result = score(op, project(op, token, op.slot(span.edit, span.begin + i), keys_packed));
        if (threadIdx.x % WARP_SIZE == 0) shares[i] = result;
      }
      __syncthreads();
    } else {
      from = scores + token * op.max_pages * PAGE_ROWS + span.begin;
    }
    softmax = softmax_of<THREADS>(from, count, partial);
  }
  for (int segment = 0; segment < count; segment += SEGMENT) {
    const int held = min(count - segment, SEGMENT);
    __syncthreads();
    for (int i = threadIdx.x; i < held; i += THREADS) {
      shares[i] = span.begin == 0 ? 1.0f : expf(from[segment + i] - softmax.largest) / softmax.sum;
    }
    __syncthreads();
    for (int start = 0; start < held; start += AHEAD) {
      if (segment + start > 0) load_values(op, span, span.begin + segment + start, column, whole, values);
#pragma unroll
      for (int i = 0; i < AHEAD; i++) {
        if (start + i >= held) break;
        const float share = op.scales == nullptr ? shares[start + i] : shares[start + i] * values.scale[i];
#pragma unroll
        for (int c = 0; c < COUNT; c++) {
          sums[c] = __fmaf_rn(share, to_float(values.rows[i].values[c]), sums[c]);
        }
      }
    }
  }
  const std::int64_t place = token * op.outputs + column;
  if (y_packed) {
#pragma unroll
    for (int c = 0; c < COUNT; c++) sums[c] += before[c];
    if (column < op.outputs) store_floats(op.out, place, sums);
  } else {
#pragma unroll
    for (int c = 0; c < COUNT; c++) {
      if (column + c < op.outputs) op.out.set(place + c, op.y[place + c] + sums[c]);
    }
  }
}

bool scored_apart(std::int64_t width, std::int64_t max_pages) {
  return max_pages > 0 && (width > NARROW || max_pages * PAGE_ROWS > SEGMENT);
}

template <typename T>
cudaError_t run(const AssociativeRead& op, float* scratch, cudaStream_t stream) {
  const bool keys_packed = keys_in_packs(op);
  const bool values_packed = op.outputs % COUNT == 0 && is_aligned(op.values.data, sizeof(T) * COUNT);
  const bool y_packed = in_packs(op.y, op.outputs) && is_aligned(op.out.data);
  const unsigned tokens = static_cast<unsigned>(op.tokens);
  const dim3 grid(tokens, static_cast<unsigned>(ceil_div(op.outputs, COLUMNS)));
  if (!scored_apart(op.width, op.max_pages)) {
    const float* none = nullptr;
    return launch(read_values<T>, grid, dim3(THREADS), 0, stream, op, none, keys_packed, values_packed,
                  y_packed);
  }
  const dim3 rows(tokens, static_cast<unsigned>(ceil_div(op.max_pages * PAGE_ROWS, WARPS)));
  const cudaError_t status = launch(score_rows, rows, dim3(THREADS), 0, stream, op, scratch, keys_packed);
  if (status != cudaSuccess) return status;
  const float* scores = scratch;
  return launch_early(read_values<T>, grid, dim3(THREADS), 0, stream, op, scores, keys_packed, values_packed,
                      y_packed);
}

}  // namespace

extern "C" std::size_t corrigenda_associative_read_scratch_bytes(const AssociativeReadArguments& arguments) {
  if (!scored_apart(arguments.width, arguments.max_pages)) return 0;
  return arguments.tokens * arguments.max_pages * PAGE_ROWS * sizeof(float);
}

extern "C" cudaError_t corrigenda_associative_read(const AssociativeReadArguments& arguments, cudaStream_t stream) {
  if (arguments.tokens == 0 || arguments.outputs == 0) return cudaSuccess;
  const AssociativeRead op = associative_read_of(arguments, {arguments.y, arguments.y_dtype}, arguments.scales,
                                                 {arguments.out, arguments.y_dtype});
  auto* scores = static_cast<float*>(arguments.scratch);
  switch (op.values.dtype) {
    case FLOAT32: return run<float>(op, scores, stream);
    case BFLOAT16: return run<__nv_bfloat16>(op, scores, stream);
    case FLOAT16: return run<__half>(op, scores, stream);
    case INT8: return run<std::int8_t>(op, scores, stream);
    default: return cudaErrorInvalidValue;
  }
}
