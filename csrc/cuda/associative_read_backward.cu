// The gradients of associative_read: a block per token makes dx and leaves its shares and dscores; then a block per row
// of an edit adds up what the edit's tokens give it, in their order, so that results are reproducible.
#include "associative_read.cuh"
#include "associative_read.h"
#include "mask_rows.cuh"

namespace {

constexpr int TOKEN_THREADS = 256;
constexpr int ROW_THREADS = 128;
constexpr int ROW_COLUMNS = 4;  // columns of a thread, ROW_THREADS apart
constexpr int SEGMENT = ROW_THREADS * 32;  // tokens that are listed at a time

// Scratch, in this order; a row is written by the tokens that read it, and read where they are.
struct Shares {
  float* share;   // [tokens, room], as the next two
  float* dscore;  // of beta u . keys_r
  float* cosine;  // u . keys_r
  float* norm;    // [tokens]
  std::int64_t room;
};

__global__ void __launch_bounds__(TOKEN_THREADS, 1)
    token_gradient(AssociativeRead op, Shares scratch, bool want_dx, bool keys_packed, bool values_packed) {
  constexpr int WARPS = TOKEN_THREADS / WARP_SIZE;
  SHARED_ARRAY(float, partial, WARPS);
  SHARED_ARRAY(float, norm, 1);
  const std::int64_t token = blockIdx.x;
  const Span span = rows_read(op, token);
  if (span.begin == 0 || span.begin >= span.end) return;
  const int warp = threadIdx.x / WARP_SIZE, lane = threadIdx.x % WARP_SIZE;
  float* const share = scratch.share + token * scratch.room;
  float* const dscore = scratch.dscore + token * scratch.room;
  float* const cosine = scratch.cosine + token * scratch.room;
  for (int r = span.begin + warp; r < span.end; r += WARPS) {
    const std::int64_t slot = op.slot(span.edit, r);
    const Projection projection = project(op, token, slot, keys_packed);
    const float dshare = value_product(op, token, slot, values_packed);
    if (lane == 0) {
      cosine[r] = projection.product / norm_of(projection);
      share[r] = op.beta * cosine[r];
      dscore[r] = dshare;
      if (r == span.begin) *norm = scratch.norm[token] = norm_of(projection);
    }
  }
  __syncthreads();
  const Softmax softmax = softmax_of<TOKEN_THREADS>(share + span.begin, span.end - span.begin, partial);
  const auto sum = [](float a, float b) { return a + b; };
  float mean = 0;
  for (int r = span.begin + static_cast<int>(threadIdx.x); r < span.end; r += TOKEN_THREADS) {
    share[r] = expf(share[r] - softmax.largest) / softmax.sum;
    mean += share[r] * dscore[r];
  }
  mean = block_reduce<TOKEN_THREADS>(mean, partial, sum);
  float radial = 0;  // u . du, as du is a sum of keys
  for (int r = span.begin + static_cast<int>(threadIdx.x); r < span.end; r += TOKEN_THREADS) {
    dscore[r] = op.beta * share[r] * (dscore[r] - mean);
    radial += dscore[r] * cosine[r];
  }
  radial = block_reduce<TOKEN_THREADS>(radial, partial, sum);
  if (!want_dx) return;
  if (!(*norm > SMALLEST_NORM)) radial = 0;  // a clamped norm is a constant
  for (std::int64_t i = threadIdx.x; i < op.width; i += TOKEN_THREADS) {
    float du = 0;
#pragma unroll 4
    for (int r = span.begin; r < span.end; r++) {
      du = __fmaf_rn(dscore[r], op.keys[op.slot(span.edit, r) * op.width + i], du);
    }
    const float u = (op.x[token * op.width + i] - op.background[i]) / *norm;
    op.out.set(token * op.width + i, (du - u * radial) / *norm);
  }
}

// Blocks [edit, row of it, columns]. A page belongs to one edit, so that no two blocks write one row.
__global__ void __launch_bounds__(ROW_THREADS, 1)
    row_gradient(AssociativeRead op, Shares scratch, MutableElements dkeys, MutableElements dvalues) {
  SHARED_ARRAY(int, list, SEGMENT);
  SHARED_ARRAY(unsigned, prefix, ROW_THREADS / WARP_SIZE);
  const int edit = static_cast<int>(blockIdx.x), r = static_cast<int>(blockIdx.y);
  if (r >= op.rows[edit]) return;
  const std::int64_t column = std::int64_t{blockIdx.z} * (ROW_THREADS * ROW_COLUMNS) + threadIdx.x;
  float dvalue[ROW_COLUMNS] = {}, dkey[ROW_COLUMNS] = {};
  int readers = 0;
  for (std::int64_t start = 0; start < op.tokens; start += SEGMENT) {
    unsigned reads = 0;
    for (int i = 0; i < 32; i++) {
      const std::int64_t token = start + std::int64_t{threadIdx.x} * 32 + i;
      if (token < op.tokens && op.route[token] == edit && op.first[token] == (r == 0)) reads |= 1u << i;
    }
    const int count = list_set_bits(reads, static_cast<int>(start), list, 0, SEGMENT, prefix);
    readers += count;
    for (int i = 0; i < count; i++) {
      const std::int64_t token = list[i];
      const float share = r == 0 ? 1.0f : scratch.share[token * scratch.room + r];
      const float along = r == 0 ? 0.0f : scratch.dscore[token * scratch.room + r] / scratch.norm[token];
#pragma unroll
      for (int c = 0; c < ROW_COLUMNS; c++) {
        const std::int64_t at = column + c * ROW_THREADS;
        if (dvalues.data != nullptr && at < op.outputs) {
          dvalue[c] = __fmaf_rn(share, op.y[token * op.outputs + at], dvalue[c]);
        }
        if (dkeys.data != nullptr && r > 0 && at < op.width) {
          dkey[c] = __fmaf_rn(along, op.x[token * op.width + at] - op.background[at], dkey[c]);
        }
      }
    }
    __syncthreads();
  }
  if (readers == 0) return;
  const std::int64_t slot = op.slot(edit, r);
#pragma unroll
  for (int c = 0; c < ROW_COLUMNS; c++) {
    const std::int64_t at = column + c * ROW_THREADS;
    if (dvalues.data != nullptr && at < op.outputs) dvalues.set(slot * op.outputs + at, dvalue[c]);
    if (dkeys.data != nullptr && r > 0 && at < op.width) dkeys.set(slot * op.width + at, dkey[c]);
  }
}

cudaError_t clear(MutableElements gradient, std::int64_t elements, cudaStream_t stream) {
  if (gradient.data == nullptr || elements == 0) return cudaSuccess;
  return cudaMemsetAsync(gradient.data, 0, elements * (gradient.dtype == FLOAT32 ? 4 : 2), stream);
}

}  // namespace

extern "C" std::size_t corrigenda_associative_read_backward_scratch_bytes(
    const AssociativeReadBackwardArguments& arguments) {
  return arguments.tokens * (3 * arguments.max_pages * PAGE_ROWS + 1) * sizeof(float);
}

extern "C" cudaError_t corrigenda_associative_read_backward(const AssociativeReadBackwardArguments& arguments,
                                                            cudaStream_t stream) {
  const std::int64_t tokens = arguments.tokens, width = arguments.width, outputs = arguments.outputs;
  const MutableElements dx{arguments.dx, arguments.x_dtype}, dkeys{arguments.dkeys, arguments.keys_dtype},
      dvalues{arguments.dvalues, arguments.values_dtype};
  cudaError_t status = clear(dx, tokens * width, stream);
  if (status == cudaSuccess) status = clear(dkeys, arguments.banks * PAGE_ROWS * width, stream);
  if (status == cudaSuccess) status = clear(dvalues, arguments.banks * PAGE_ROWS * outputs, stream);
  if (status != cudaSuccess || tokens == 0 || arguments.edits == 0 || arguments.max_pages == 0) return status;
  const AssociativeRead op = associative_read_of(arguments, {arguments.grad, arguments.grad_dtype}, nullptr, dx);
  const std::int64_t room = arguments.max_pages * PAGE_ROWS;
  auto* share = static_cast<float*>(arguments.scratch);
  const Shares shares{share, share + tokens * room, share + 2 * tokens * room, share + 3 * tokens * room, room};
  const bool keys_packed = keys_in_packs(op);
  const bool values_packed = in_packs(op.values, outputs) && in_packs(op.y, outputs);
  status = launch(token_gradient, dim3(static_cast<unsigned>(tokens)), dim3(TOKEN_THREADS), 0, stream, op, shares,
                  dx.data != nullptr, keys_packed, values_packed);
  if (status != cudaSuccess || (dkeys.data == nullptr && dvalues.data == nullptr)) return status;
  const std::int64_t columns = dkeys.data != nullptr && (dvalues.data == nullptr || width > outputs) ? width : outputs;
  if (columns == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(arguments.edits), static_cast<unsigned>(room),
                  static_cast<unsigned>(ceil_div(columns, ROW_THREADS * ROW_COLUMNS)));
  return launch(row_gradient, grid, dim3(ROW_THREADS), 0, stream, op, shares, dkeys, dvalues);
}
